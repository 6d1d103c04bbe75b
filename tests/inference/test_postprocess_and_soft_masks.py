"""Soft masks averaged over flips, and made segmentations: known answers, the published CRF."""
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from config import Config
from helpers import disc
from inference import postprocess
from inference.crf import DenseCRF, PermutohedralLattice
from inference.metrics import jaccard
from inference.postprocess import (
    PSEUDO_LABEL_RULES,
    RULES,
    clear_corners,
    pseudo_label,
    segment,
    to_bytes,
)
from inference.soft_masks import average_over_flips
from networks import MaskPrediction

VECTORS = os.environ.get('REFERENCE_VECTORS')


def test_known_answers():
    assert to_bytes(np.array([[-1, 0, 0.5, 1, 2, np.nan]])).tolist() == [[0, 0, 128, 255, 255, 0]]
    mask = np.full((20, 20), 30, np.uint8)
    mask[5:9, 5:9] = 200
    assert np.array_equal(postprocess.otsu(mask), mask == 200)
    image = np.full((4, 4, 3), 0.2)
    image[0] = -1  # background, which holds no lesion
    image[1, :, 0] = -1  # one channel at the minimum is none
    cleared = postprocess.clear_background(np.full((4, 4), 0.8), image)
    assert (cleared[0] == 0).all() and (cleared[1:] == 0.8).all()


@pytest.mark.parametrize('rule', RULES)
def test_masks_of_one_level_and_tiny_ones(rule):
    """Of one level: otsu, watershed and rules for pseudo-labels find nothing; threshold follows the
    level; crf is never in doubt about an empty or a full mask."""
    image = np.random.default_rng(0).integers(0, 255, (24, 50, 3), dtype=np.uint8)
    for level in (0, 255, 128):
        segmentation = segment(np.full((24, 50), level, np.uint8), rule, image)
        assert segmentation.dtype == bool and segmentation.shape == (24, 50)
        if rule in ('otsu', 'watershed', *PSEUDO_LABEL_RULES) or level == 0:
            assert not segmentation.any()
        elif rule == 'threshold' or level == 255:
            assert segmentation.all()
    for height, width in ((1, 1), (1, 50), (3, 3)):
        tiny = image[:height, :width]
        assert segment(tiny[..., 0], rule, tiny).shape == (height, width)


@pytest.mark.parametrize('rule', ['watershed', 'crf'])
def test_large_images_are_segmented_at_the_published_size(rule):
    """Sizes in these rules are in px of 256 px images, so the result scales with the image."""
    def segmented(lesion):
        image = np.where(lesion[..., None], 80, 200).astype(np.uint8).repeat(3, -1)
        return segment(to_bytes(lesion * 0.8 + 0.1), rule, image)
    small = segmented(disc((200, 256), (100, 128), 60))
    large = segmented(disc((600, 768), (300, 384), 180))
    assert large.shape == (600, 768)
    assert jaccard(large, small.repeat(3, 0).repeat(3, 1)) > 0.95


def test_an_unknown_rule_and_a_missing_image_are_refused():
    for rule, message in (('magic', 'magic'), ('crf', 'crf: this rule needs the image')):
        with pytest.raises(ValueError, match=message):
            segment(np.zeros((4, 4), np.uint8), rule)


def test_the_run_s_components_come_before_clear_corners():
    image = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    mask = to_bytes(disc((32, 48), (16, 24), 9) * 0.8 + disc((32, 48), (0, 0), 12) * 0.9)
    config = Config(keep_components='all', clear_corners=True)
    expected = segment(mask, 'clean', image, 1, 'all')
    cleared = postprocess.to_segmentation(mask, 'clean', image, 1, config)
    assert (cleared == clear_corners(expected)).all() and (cleared != expected).any()


def test_watershed_keeps_lesions_up_to_the_border_and_drops_specks():
    lesions = disc((128, 128), (40, 40), 16) | disc((128, 128), (90, 90), 14)
    mask = np.where(lesions, 220, 20).astype(np.uint8)
    mask[10:12, 100:102] = 255  # opened away
    segmentation = segment(mask, 'watershed')
    assert jaccard(segmentation, lesions) > 0.85 and not segmentation[5:20, 95:110].any()
    border = np.full((64, 64), 20, np.uint8)
    border[20:44, :24] = 220
    segmentation = segment(border, 'watershed')
    assert segmentation[24:40, 0].all() and jaccard(segmentation, border > 127) > 0.8
    specks = np.zeros((40, 40), np.uint8)
    specks[::7, ::7] = 255
    assert not segment(specks, 'watershed').any()


@pytest.mark.skipif(not VECTORS, reason='REFERENCE_VECTORS is not set')
@pytest.mark.parametrize('number', range(4))
def test_the_crf_equals_the_reference_implementation(number):
    arrays = np.load(Path(VECTORS) / 'dense_crf.npz')
    crf = DenseCRF(arrays[f'{number}_image'])
    probabilities = crf.infer(arrays[f'{number}_mask'].astype(np.float32), (1, 4))
    for probability, exponent in zip(probabilities, (1, 4), strict=True):
        ours, theirs = probability > 0.5, arrays[f'{number}_crf_t{exponent}'] > 0.5
        if theirs.sum() > 50:
            assert jaccard(ours, theirs) >= 0.98
        else:
            assert (ours ^ theirs).sum() <= 100


@pytest.mark.parametrize('dims', [2, 3, 5])
def test_the_lattice_filters_like_a_gaussian(dims):
    """Against the sum over all pairs of points; the lattice is an approximation of it."""
    rng = np.random.default_rng(dims)
    features = rng.uniform(0, 3, (400, dims)).astype(np.float32)
    values = rng.uniform(0, 1, (400, 2)).astype(np.float32)
    kernel = np.exp(-((features[:, None] - features[None]) ** 2).sum(-1) / 2)
    exact = kernel @ values / kernel.sum(1, keepdims=True)
    lattice = PermutohedralLattice(features)
    ours = lattice.filter(values) / lattice.filter(np.ones((400, 1), np.float32))
    assert np.abs(ours - exact).max() < 0.06
    # the same as a sum over corners: barycentric weights are positive and sum to 1
    assert lattice.slice.data.min() > -1e-5 and np.allclose(lattice.slice.sum(1), 1, atol=1e-5)


def test_the_crf_follows_the_edges_of_the_image():
    lesion = disc((64, 64), (32, 32), 14)
    image = np.where(lesion[..., None], (90, 60, 50), (220, 180, 160)).astype(np.uint8)
    mask = to_bytes(disc((64, 64), (35, 30), 12) * 0.7 + 0.15)
    assert jaccard(segment(mask, 'crf', image), lesion) > 0.97 > jaccard(mask > 127, lesion) + 0.2
    # a higher exponent leaves less to the background
    areas = [segment(mask, 'crf', image, exponent).sum() for exponent in (0.5, 1, 8)]
    assert areas == sorted(areas)


def test_one_crf_serves_all_masks_and_exponents():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)
    crf = DenseCRF(image)
    first, second = rng.uniform(0, 1, (2, 30, 40)).astype(np.float32)
    together = crf.infer(first, (1, 3))
    crf.infer(second, (2,))
    assert np.allclose(together[0], crf.infer(first, (1,))[0], atol=1e-6)
    assert np.allclose(together[1], DenseCRF(image).infer(first, (3,))[0], atol=1e-6)
    assert together.shape == (2, 30, 40) and 0 <= together.min() <= together.max() <= 1
    # and what val computes by all rules at once is what each computes alone
    masks = [to_bytes(first), to_bytes(second)]
    by_rule = postprocess.segment_by_all(masks, image, [[('crf', (1, 3)), ('otsu', (1, 3))],
                                                        [('crf', (2,)), ('color_edges', ())]])
    assert [list(of_mask) for of_mask in by_rule] == [[('crf', 1), ('crf', 3), ('otsu', None)],
                                                      [('crf', 2), ('color_edges', None)]]
    for mask, of_mask in zip(masks, by_rule, strict=True):
        for (rule, exponent), segmentation in of_mask.items():
            assert (segmentation == segment(mask, rule, image, exponent or 1)).all()


def test_in_an_image_of_one_color_the_crf_lets_the_majority_win():
    """There are no edges to stop at; the result still is a number everywhere."""
    lesion = disc((32, 32), (16, 16), 8)
    for majority, expected in ((lesion, False), (~lesion, True)):
        mask = to_bytes(majority * 0.8 + 0.1)
        assert (segment(mask, 'crf', np.zeros((32, 32, 3), np.uint8)) == expected).all()
    probability = DenseCRF(np.zeros((32, 32, 3), np.uint8)).infer(np.eye(32))
    assert np.isfinite(probability).all()


def test_corners_are_cleared_in_scale():
    full = clear_corners(np.ones((256, 256), bool))
    triangle = np.add.outer(np.arange(256), np.arange(256)) < 79  # leg 80, without the rim
    for rotation in range(4):
        corner = np.rot90(full, rotation)
        assert not corner[triangle].any() and corner[81, 0] and corner[0, 81]
    wide = clear_corners(np.ones((64, 128), bool))
    assert not wide[0, 38] and wide[0, 41] and not wide[18, 0] and wide[21, 0]
    assert clear_corners(np.zeros((8, 8), bool)).sum() == 0


def test_a_pseudo_label_is_cleaned_and_refined():
    lesion = disc((128, 128), (64, 64), 20)
    soft = to_bytes((disc((128, 128), (64, 64), 23) | disc((128, 128), (10, 10), 4)) * 0.8)
    image = np.where(lesion[..., None], 60, 180).astype(np.uint8).repeat(3, 2)
    plain, refined = (pseudo_label(soft, image, rule, 'large') for rule in ('clean', 'color_edges'))
    assert not plain[10, 10] and jaccard(plain, lesion) < 0.8 < 0.95 < jaccard(refined, lesion)
    assert (segment(soft, 'color_edges', image) == refined).all()
    assert (segment(soft, 'clean') == plain).all()


class CornerNetwork(torch.nn.Module):
    """Its mask is the upper left corner of the image, plus that of a conditioning image."""

    def predict_mask(self, *inputs):
        mask = torch.zeros(len(inputs[0]), 1, *inputs[0].shape[2:])
        mask[:, 0, 0, 0] = sum(part[:, 0, 0, 0] for part in inputs)
        return MaskPrediction(mask)


def test_flips_are_averaged_in_the_image_s_own_orientation():
    """Over four flips each corner counts a quarter, over two the upper ones a half."""
    network = CornerNetwork()
    for count in (1, 2):  # the image alone, and with a conditioning image
        inputs = list(torch.rand(count, 2, 3, 4, 6))
        mask = network.predict_mask(*inputs).mask
        mean = average_over_flips(network, inputs, mask, 'flips')
        expected = torch.zeros_like(mask)
        for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
            expected[:, 0, row, column] = sum(part[:, 0, row, column] for part in inputs) / 4
        assert torch.allclose(mean, expected)
        mirrored = average_over_flips(network, inputs, mask, 'mirror')
        assert torch.allclose(mirrored[..., 0, :], 2 * expected[..., 0, :])
        assert not mirrored[..., 1:, :].any()
        assert torch.equal(average_over_flips(network, inputs, mask, 'none'), mask)
