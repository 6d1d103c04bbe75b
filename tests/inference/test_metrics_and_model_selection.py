"""Metrics: known answers, the defined edge cases, summaries; and the score without labels."""
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from inference import metrics
from inference.metrics import (
    DISTANCES,
    METRICS,
    all_metrics,
    bootstrap,
    jaccard,
    paired_bootstrap,
    segmentation_metrics,
)
from inference.model_selection import LabelFreeScore

EMPTY, FULL = np.zeros((3, 3), bool), np.ones((3, 3), bool)


def test_known_answer():
    prediction = np.array([[1, 1, 0, 0, 0]], bool)
    label = np.array([[1, 0, 1, 1, 0]], bool)  # TP 1, FP 1, FN 2, TN 1
    percent = segmentation_metrics(prediction, label)
    assert percent == pytest.approx({'JA': 25, 'AC': 40, 'DI': 40, 'SE': 100 / 3, 'SP': 50})
    assert [*percent, *DISTANCES] == [*METRICS, *DISTANCES] == list(metrics.METRIC_INFO)
    assert jaccard(prediction, label) == 0.25
    with pytest.raises(ValueError, match='shape'):
        segmentation_metrics(np.zeros((2, 2), bool), EMPTY)
    for prediction, label in np.random.default_rng(0).random((20, 2, 8, 8)) > 0.5:
        percent, ja = segmentation_metrics(prediction, label), jaccard(prediction, label)
        assert percent['JA'] == pytest.approx(100 * ja)
        assert percent['DI'] == pytest.approx(100 * 2 * ja / (1 + ja))


def test_zero_of_zero_is_100():
    assert set(segmentation_metrics(EMPTY, EMPTY).values()) == {100}
    assert segmentation_metrics(FULL, FULL) == dict.fromkeys(METRICS, 100)
    assert segmentation_metrics(FULL, EMPTY) == {'JA': 0, 'AC': 0, 'DI': 0, 'SE': 100, 'SP': 0}
    assert segmentation_metrics(EMPTY, FULL) == {'JA': 0, 'AC': 0, 'DI': 0, 'SE': 0, 'SP': 100}
    assert jaccard(EMPTY, EMPTY) == jaccard(FULL, FULL) == 1 and jaccard(FULL, EMPTY) == 0


def block(shape, *corners, side=10):
    mask = np.zeros(shape, bool)
    for corner in corners:
        mask[tuple(slice(start, start + side) for start in corner)] = True
    return mask


def test_distances_of_known_answer():
    """Shifted squares, a far speck, an anisotropic volume, and two single pixels."""
    square = block((40, 40), (5, 5))
    shifted = all_metrics(square, block((40, 40), (5, 8)))
    assert shifted['HD95'] == 3 and 0.5 < shifted['ASSD'] < 3 and 'HD95_mm' not in shifted
    assert all_metrics(square, square)['HD95'] == all_metrics(square, square)['ASSD'] == 0
    # of the surface of the second 4 of 40 pixels are far, of all 76 they are 5.3 %, of the first 0
    speck = square | block((40, 40), (30, 5), side=2)
    assert all_metrics(square, speck)['HD95'] == all_metrics(speck, square)['HD95'] > 15
    cube = block((20, 20, 20), (4, 4, 4))
    in_mm = all_metrics(cube, block((20, 20, 20), (4, 4, 5)), (1, 1, 5))
    assert (in_mm['HD95'], in_mm['HD95_mm']) == (1, 5)
    pixels = [block((9, 9), corner, side=1) for corner in ((1, 1), (4, 5))]
    assert {all_metrics(*pixels, (2, 2))[short] for short in ('HD95', 'ASSD')} == {5}
    assert {all_metrics(*pixels, (2, 2))[short] for short in ('HD95_mm', 'ASSD_mm')} == {10}
    for one, other in ((EMPTY, FULL), (FULL, EMPTY), (EMPTY, EMPTY)):
        assert all_metrics(one, other)['HD95'] is None is all_metrics(one, other)['ASSD']


@pytest.mark.parametrize('shape, spacing', [((30, 40), (1, 1)), ((12, 14, 9), (0.7, 1, 4.5))])
def test_distances_equal_those_of_distance_transforms(shape, spacing):
    rng = np.random.default_rng(len(shape))
    masks = [ndimage.gaussian_filter(rng.normal(size=shape), 2) > 0 for _ in range(2)]
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in masks]
    there, back = (ndimage.distance_transform_edt(~surfaces[1 - index], spacing)[surfaces[index]]
                   for index in (0, 1))
    result = all_metrics(*masks, spacing)
    assert result['HD95_mm'] == pytest.approx(max(np.percentile(there, 95),
                                                  np.percentile(back, 95)))
    assert result['ASSD_mm'] == pytest.approx(np.concatenate((there, back)).mean())


def test_summary_over_images():
    rows = [{'name': f'image{value}', **dict.fromkeys(METRICS, value)} for value in (0.0, 50.0, 10)]
    summary, (low, high) = metrics.summarize(rows), bootstrap((0, 50, 10))
    assert summary == {name: dict.fromkeys(METRICS, value) for name, value in (
        ('mean', 20.0), ('95 % from', low), ('95 % to', high), ('median', 10.0), ('lowest', 0.0),
        ('highest', 50.0))}
    assert metrics.mean_metrics(rows) == summary['mean']
    assert metrics.mean_metrics([]) == metrics.summarize([]) == {}
    assert bootstrap([3]) == bootstrap([]) == (None, None)


def test_undefined_distances_are_counted_and_not_averaged():
    rows = [all_metrics(*masks) for masks in ((EMPTY, FULL), (FULL, EMPTY), (FULL, FULL))]
    rows[2]['HD95'] = 8.0
    summary = metrics.summarize(rows)
    assert summary['mean']['HD95'] == summary['lowest']['HD95'] == 8
    assert summary['95 % from']['HD95'] is None  # of one image
    assert summary['undefined'] == dict.fromkeys(METRICS, 0) | {'HD95': 2, 'ASSD': 2}
    assert metrics.summarize(rows[:2])['mean']['HD95'] is None


def test_the_bootstrap_interval():
    """Pairs count: a constant gain is certain however the images differ; noise of known spread
    gives the interval of the normal distribution; the same data give the same interval."""
    rng = np.random.default_rng(0)
    one = rng.uniform(0, 100, 400)
    assert paired_bootstrap(one, one) == (0, 0)
    assert paired_bootstrap(one, one + 3) == pytest.approx((3, 3))
    noise = rng.normal(0, 5, 400)
    low, high = paired_bootstrap(one, one + noise)
    half = 1.96 * noise.std() / 20
    assert (low, high) == pytest.approx((noise.mean() - half, noise.mean() + half), abs=0.06)
    assert paired_bootstrap(one, one + noise) == (low, high)


class BrightIsDisease(torch.nn.Module):
    """A localizer whose logits are high wherever an image is bright."""

    def logits_over_views(self, image: Tensor) -> Tensor:
        return 8 * torch.nn.functional.avg_pool2d(image.mean(1, keepdim=True), 4)


def test_the_label_free_score_prefers_the_lesion_itself(tmp_path):
    """The right segmentation beats too small, too large, elsewhere, nothing and everything."""
    rng = np.random.default_rng(0)
    lesion = np.zeros((64, 64), bool)
    lesion[20:36, 24:44] = True
    image = rng.normal(50, 5, (64, 64, 3))
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(tmp_path / 'normal.png')
    image[lesion] += 170
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(tmp_path / 'disease.png')
    score = LabelFreeScore(BrightIsDisease(), (64, 64), torch.device('cpu'))
    score.learn_normal([tmp_path / 'normal.png'])
    large = lesion.copy()
    large[12:44, 16:52] = True
    segmentations = {'small': lesion & (np.arange(64)[:, None] < 26),
                     'elsewhere': np.roll(lesion, 24, 0), 'none': np.zeros_like(lesion),
                     'all': np.ones_like(lesion), 'large': large, 'right': lesion}
    scores = {name: score(tmp_path / 'disease.png', segmentation)
              for name, segmentation in segmentations.items()}
    assert max(scores, key=scores.get) == 'right' and scores['right'] > 80
    assert scores['none'] == pytest.approx(0, abs=0.5) and scores['all'] < 5
