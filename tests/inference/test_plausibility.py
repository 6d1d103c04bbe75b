"""Masks that look inverted, empty or all alike, in test, in predict and of a teacher."""
import numpy as np
import pytest
import torch
from PIL import Image

from helpers import disc
from inference.plausibility import mask_warnings, mean_correlation, small_mask
from stages.validation import Validation


def soft(inside: float, outside: float, center: tuple[float, float]) -> np.ndarray:
    """A soft mask with a disc."""
    return np.where(disc((96, 80), center, 14), inside, outside).astype(np.float32)


CENTERS = np.random.default_rng(0).uniform(20, 60, (6, 2))


@pytest.mark.parametrize('masks, expected', [
    ([soft(0.9, 0.05, center) for center in CENTERS], []),
    ([soft(0.1, 0.9, center) for center in CENTERS], ['look inverted (mean 0.8']),
    ([soft(0.001, 0, center) for center in CENTERS], ['nearly empty (mean 0.0001)']),
    ([soft(0.9, 0.05, (40, 40))] * 6, ['all alike (mean correlation 1.00)']),
    ([np.full((96, 80), 0.5, np.float32)] * 5, ['all alike (mean correlation 1.00)']),
    ([np.ones((96, 80), np.float32)] * 5, ['look inverted', 'all alike']),
    ([soft(0.9, 0.05, (40, 40))] * 4, []), ([np.zeros((96, 80), np.float32)], []), ([], [])],
    ids=['good', 'inverted', 'empty', 'alike', 'flat', 'full', 'few', 'one', 'none'])
def test_what_is_wrong_with_masks(masks, expected):
    for of_type in (masks, [np.rint(mask * 255).astype(np.uint8) for mask in masks]):
        lines = mask_warnings([small_mask(mask) for mask in of_type])
        if of_type is masks or 'nearly' not in ''.join(expected):
            assert len(lines) == len(expected), lines
            for line, text in zip(lines, expected, strict=True):
                assert line.startswith('warning: the soft masks of ') and text in line
                assert '\n' not in line


def test_correlation_is_that_of_numpy():
    masks = np.random.default_rng(1).random((7, 50)).astype(np.float32)
    pairs = np.corrcoef(masks)[np.triu_indices(7, 1)]
    assert mean_correlation(masks) == pytest.approx(pairs.mean(), abs=1e-5)
    two_flat = np.concatenate([masks[:2], np.full((2, 50), 0.3, np.float32)])
    expected = (np.corrcoef(masks[:2])[0, 1] + 1) / 6  # pairs: these two, the flat two, four mixed
    assert mean_correlation(two_flat) == pytest.approx(expected, abs=1e-5)


def test_predict_and_test_tell(stage_1_run, tmp_path):
    """All test images are one, so that their masks are."""
    places = stage_1_run.copy(tmp_path)
    pixels = (places.data / 'testA' / 't0.png').read_bytes()
    for number in range(5):
        (places.data / 'testA' / f't{number}.png').write_bytes(pixels)
    assert 'warning: the soft masks of 5 images' in places.done('--phase', 'test')
    folder = places.results / 'test1' / 'best'
    for name in ('metrics.json', 'report.html'):
        assert 'soft masks of 5 images' in (folder / name).read_text('utf-8')
    out = places.done('--phase', 'predict', '--input', places.data / 'testA', '--output',
                      tmp_path / 'masks')
    assert 'warning: the soft masks of 5 images' in out


def test_a_teacher_whose_masks_are_empty_is_told(tiny_config, tmp_path):
    config = tiny_config(stage=2)
    images = {'A': sorted((config.data_folder / 'trainA').iterdir()), 'B': []}
    masks = {path.stem: tmp_path / f'{path.stem}.png' for path in images['A']}
    validation = Validation(config, torch.device('cpu'), images, [], {'train': masks, 'val': None})
    for number, path in enumerate(masks.values()):
        mask = np.zeros((36, 40), np.uint8)
        mask[4:16, 4 + 4 * number:16 + 4 * number] = 200
        Image.fromarray(mask).save(path)
    assert validation.teacher_warnings() == []
    for path in masks.values():
        Image.fromarray(np.zeros((36, 40), np.uint8)).save(path)
    warning, = validation.teacher_warnings()
    assert '5 of 5 pseudo-labels' in warning and str(tmp_path) in warning and '--seed' in warning
