"""The built-in data: exact, deterministic, the lesion the only difference, written whole."""
import cv2
import numpy as np
import pytest
from PIL import Image

import phantom


def draw(seed, diseased=True, size=128):
    return phantom.draw_skin(np.random.default_rng(seed), size, diseased)


def test_drawn_again_alike_and_otherwise_for_another_seed():
    for one, again in zip(draw(3), draw(3)):
        assert np.array_equal(one, again)
    assert not np.array_equal(draw(3)[0], draw(4)[0])


@pytest.mark.parametrize('seed', range(12))
def test_the_lesion_is_the_only_difference(seed):
    diseased, mask = draw(seed)
    normal, nothing = draw(seed, diseased=False)
    assert diseased.shape == (128, 128, 3) and mask.shape == (128, 128) and diseased.dtype == mask.dtype == np.uint8
    assert not nothing.any() and set(np.unique(mask)) == {0, 255}
    lesion = mask > 0
    near = cv2.dilate(mask, np.ones((7, 7))) > 0  # the outline is soft
    assert np.array_equal(diseased[~near], normal[~near])
    assert diseased[lesion].mean() < normal[lesion].mean() - 10
    low, high = phantom.LESION_AREA
    assert low - 0.01 <= lesion.mean() <= high + 0.01


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(phantom, 'SETS', [(name, 2, diseased, labels)
                                          for name, _, diseased, labels in phantom.SETS])


def test_the_layout(tmp_path, few):
    folder = tmp_path / 'made' / 'phantom'
    phantom.write_phantom(folder, size=64, progress=False)
    assert [path.name for path in folder.parent.iterdir()] == ['phantom']
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob('*.*'))
    expected = ['README.txt'] + [f'{place}_000{i}{end}.png' for i in (1, 2) for place, end in (
        ('trainA/disease', ''), ('trainB/normal', ''), ('testA/disease', ''),
        ('testB/normal', ''), ('val/images/disease', ''), ('test/labels/disease', '_segmentation'),
        ('val/labels/disease', '_segmentation'))]
    assert found == sorted(expected)
    images = {np.asarray(Image.open(path)).tobytes() for path in folder.rglob('*.png')}
    assert len(images) == 14  # no picture twice, over all sets
    again = tmp_path / 'again'
    phantom.write_phantom(again, size=64, progress=False)
    for path in found:
        assert (folder / path).read_bytes() == (again / path).read_bytes()


def test_a_failure_leaves_nothing(tmp_path, few, monkeypatch):
    calls = []
    draw_skin = phantom.draw_skin

    def fail_late(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise OSError('disk full')
        return draw_skin(*arguments)

    monkeypatch.setattr(phantom, 'draw_skin', fail_late)
    with pytest.raises(OSError):
        phantom.write_phantom(tmp_path / 'phantom', size=64, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_set_made_meanwhile_stays(tmp_path, few):
    phantom.write_phantom(tmp_path / 'phantom', seed=1, size=64, progress=False)
    before = (tmp_path / 'phantom' / 'trainA' / 'disease_0001.png').read_bytes()
    phantom.write_phantom(tmp_path / 'phantom', seed=2, size=64, progress=False)
    assert (tmp_path / 'phantom' / 'trainA' / 'disease_0001.png').read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ['phantom']
