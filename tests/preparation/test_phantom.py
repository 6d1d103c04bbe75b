"""The built-in data: exact, deterministic, the lesion the only difference, written as a whole."""
from unittest import mock

import cv2
import numpy as np
import pytest

from helpers import names, read_pixels
from preparation import phantom
from prepared import snapshot


def draw(seed: int, diseased: bool = True, size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    return phantom.draw_skin(np.random.default_rng(seed), size, diseased)


@pytest.mark.parametrize('seed', range(12))
def test_the_seed_decides_and_the_lesion_is_the_only_difference(seed):
    diseased, mask = draw(seed)
    normal, empty = draw(seed, diseased=False)
    assert np.array_equal(diseased, draw(seed)[0]) and np.array_equal(mask, draw(seed)[1])
    assert not np.array_equal(diseased, draw(seed + 1)[0])
    assert diseased.shape == (128, 128, 3) and mask.shape == (128, 128)
    assert diseased.dtype == mask.dtype == np.uint8
    assert not empty.any() and set(np.unique(mask)) == {0, 255}
    lesion = mask > 0
    near = cv2.dilate(mask, np.ones((7, 7))) > 0  # the outline is soft
    assert np.array_equal(diseased[~near], normal[~near])
    assert diseased[lesion].mean() < normal[lesion].mean() - 10
    low, high = phantom.LESION_AREA
    assert low - 0.01 <= lesion.mean() <= high + 0.01


@pytest.fixture
def few(monkeypatch):
    """Two images in each subset."""
    subsets = [subset._replace(count=2) for subset in phantom.SUBSETS]
    monkeypatch.setattr(phantom, 'SUBSETS', subsets)


def test_the_layout(tmp_path, few):
    folder = tmp_path / 'new' / 'phantom'
    phantom.write_phantom(folder, size=64, progress=False)
    assert names(folder.parent) == ['phantom']
    files = snapshot(folder)
    assert files.keys() == {'README.txt', *(
        f'{place}_000{number}{ending}.png' for number in (1, 2) for place, ending in (
            ('trainA/disease', ''), ('trainB/normal', ''), ('testA/disease', ''),
            ('testB/normal', ''), ('val/images/disease', ''),
            ('test/labels/disease', '_segmentation'), ('val/labels/disease', '_segmentation')))}
    assert len({read_pixels(path).tobytes() for path in folder.rglob('*.png')}) == 14  # none twice
    phantom.write_phantom(tmp_path / 'again', size=64, progress=False)
    assert snapshot(tmp_path / 'again') == files


def test_a_failure_leaves_nothing(tmp_path, few, monkeypatch):
    drawn = [phantom.draw_skin(np.random.default_rng(0), 64, True)] * 4
    monkeypatch.setattr(phantom, 'draw_skin', mock.Mock(side_effect=[*drawn, OSError('disk full')]))
    with pytest.raises(OSError, match='disk full'):
        phantom.write_phantom(tmp_path / 'phantom', size=64, progress=False)
    assert not names(tmp_path)
