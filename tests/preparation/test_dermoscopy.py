"""Artifacts are found, and corners of plain skin hold neither lesion nor artifact."""
import cv2
import numpy as np
import pytest

from helpers import disc
from preparation import dermoscopy

HEIGHT, WIDTH = 192, 256
SKIN, LESION = (215, 170, 150), (110, 65, 50)
MIDDLE = HEIGHT / 2, WIDTH / 2


def skin_image() -> np.ndarray:
    """A round lesion in the middle of slightly noisy skin."""
    image = np.full((HEIGHT, WIDTH, 3), SKIN, float)
    image[disc((HEIGHT, WIDTH), MIDDLE, 40)] = LESION
    image += np.random.default_rng(0).normal(0, 2, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def with_dark_corners(image: np.ndarray) -> np.ndarray:
    return np.where(disc(image.shape[:2], MIDDLE, 140)[..., None], image, 10).astype(np.uint8)


def with_ruler(image: np.ndarray) -> np.ndarray:
    image = image.copy()
    for x in range(20, 240, 10):
        cv2.line(image, (x, HEIGHT - 4), (x, HEIGHT - 14), (20, 20, 20), 1)
    return image


def with_color_patch(image: np.ndarray) -> np.ndarray:
    return cv2.circle(image.copy(), (0, 30), 30, (50, 90, 210), -1)


ARTIFACTS = {'dark corners': with_dark_corners, 'ruler': with_ruler,
             'color patch': with_color_patch}


def test_no_artifact_in_skin_with_a_lesion():
    assert dermoscopy.find_artifacts(skin_image()) == []


@pytest.mark.parametrize('factor', (0.5, 1, 2))
@pytest.mark.parametrize('name', ARTIFACTS)
def test_an_artifact_is_found_at_any_size(name, factor):
    image = cv2.resize(ARTIFACTS[name](skin_image()), None, fx=factor, fy=factor,
                       interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    assert name in dermoscopy.find_artifacts(image)


def test_several_artifacts_are_named_in_order():
    image = with_color_patch(with_ruler(skin_image()))
    assert dermoscopy.find_artifacts(image) == ['ruler', 'color patch']


@pytest.mark.parametrize('labeled', (True, False))
def test_a_plain_corner_holds_no_lesion(labeled):
    image = skin_image()
    lesion = disc((HEIGHT, WIDTH), MIDDLE, 40)
    corners = set()
    for seed in range(10):
        top, left, side = dermoscopy.plain_corner(image, lesion if labeled else None,
                                                  np.random.default_rng(seed))
        assert top in (0, HEIGHT - side) and left in (0, WIDTH - side)
        assert not lesion[top:top + side, left:left + side].any()
        corners.add((top > 0, left > 0))
    assert len(corners) == 4  # chance decides among them


def test_a_plain_corner_holds_no_artifact():
    image = with_color_patch(with_ruler(skin_image()))  # top left, and along the lower side
    for seed in range(4):
        top, left, _ = dermoscopy.plain_corner(image, None, np.random.default_rng(seed))
        assert top == 0 and left > 0


def test_no_plain_corner_where_lesion_is_everywhere():
    everywhere = np.ones((HEIGHT, WIDTH), bool)
    assert dermoscopy.plain_corner(skin_image(), everywhere, np.random.default_rng(0)) is None
