"""Artifacts are found, and corners of plain skin hold neither lesion nor artifact."""
import cv2
import numpy as np
import pytest

from helpers import disc
from preparation import dermoscopy

SIZE = HEIGHT, WIDTH = 192, 256
LESION = disc(SIZE, (96, 128), 40)


def skin_image(*artifacts: str) -> np.ndarray:
    """A round lesion in the middle of slightly noisy skin, with these artifacts."""
    image = np.where(LESION[..., None], (110, 65, 50), (215, 170, 150))
    image = image + np.random.default_rng(0).normal(0, 2, image.shape)
    image = image.clip(0, 255).astype(np.uint8)
    if 'dark corners' in artifacts:
        image[~disc(SIZE, (96, 128), 140)] = 10
    if 'ruler' in artifacts:  # along the lower side
        for x in range(20, 240, 10):
            cv2.line(image, (x, HEIGHT - 4), (x, HEIGHT - 14), (20, 20, 20), 1)
    if 'color patch' in artifacts:  # top left
        cv2.circle(image, (0, 30), 30, (50, 90, 210), -1)
    return image


@pytest.mark.parametrize('factor', (0.5, 1, 2))
def test_artifacts_are_found_at_any_size(factor):
    for artifacts in ([], ['dark corners'], ['ruler', 'color patch']):
        image = cv2.resize(skin_image(*artifacts), None, fx=factor, fy=factor,
                           interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
        assert set(dermoscopy.find_artifacts(image)) >= set(artifacts)
    assert not dermoscopy.find_artifacts(skin_image())


@pytest.mark.parametrize('label', (LESION, None), ids=('labeled', 'unlabeled'))
def test_a_plain_corner_holds_neither_lesion_nor_artifact(label):
    for seed in range(10):
        top, left, side = dermoscopy.plain_corner(skin_image(), label, np.random.default_rng(seed))
        assert top in (0, HEIGHT - side) and left in (0, WIDTH - side)
        assert not LESION[top:top + side, left:left + side].any()
    rng = np.random.default_rng(0)
    top, left, _ = dermoscopy.plain_corner(skin_image('ruler', 'color patch'), label, rng)
    assert top == 0 and left > 0
    assert dermoscopy.plain_corner(skin_image(), np.ones(SIZE, bool), rng) is None
