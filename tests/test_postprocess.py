"""Soft masks to segmentations: known answers, the published CRF, and where a rule has nothing."""
import os
from pathlib import Path

import numpy as np
import pytest

import postprocess
from conftest import disc, jaccard
from crf import DenseCRF, PermutohedralLattice
from postprocess import clear_corners, segment
from settings import Lesions

VECTORS = os.environ.get('REFERENCE_VECTORS')


@pytest.mark.skipif(not VECTORS, reason='REFERENCE_VECTORS is not set')
@pytest.mark.parametrize('number', range(4))
def test_the_crf_is_the_usual_one(number):
    arrays = np.load(Path(VECTORS) / 'dense_crf.npz')
    crf = DenseCRF(arrays[f'{number}_image'])
    made = crf.infer(arrays[f'{number}_mask'].astype(np.float32), (1, 4))
    for ours, exponent in zip(made, (1, 4)):
        ours, theirs = ours > 0.5, arrays[f'{number}_crf_t{exponent}'] > 0.5
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
    distances = ((features[:, None] - features[None]) ** 2).sum(-1)
    kernel = np.exp(-distances / 2)
    exact = kernel @ values / kernel.sum(1, keepdims=True)
    lattice = PermutohedralLattice(features)
    ours = lattice.filter(values) / lattice.filter(np.ones((400, 1), np.float32))
    assert np.abs(ours - exact).max() < 0.06
    # the same as a sum over corners: barycentric weights are positive and sum to 1
    assert lattice.slice.data.min() > -1e-5
    assert np.allclose(lattice.slice.sum(1), 1, atol=1e-5)


def test_the_crf_follows_the_edges_of_the_image():
    lesion = disc((64, 64), (32, 32), 14)
    image = np.where(lesion[..., None], (90, 60, 50), (220, 180, 160)).astype(np.uint8)
    rough = disc((64, 64), (35, 30), 12) * 0.7 + 0.15
    mask = postprocess.to_bytes(rough)
    assert jaccard(segment(mask, 'crf', image), lesion) > 0.97 > jaccard(mask > 127, lesion) + 0.2
    # a higher exponent leaves less to the background
    small = [postprocess.crf_segmentations(mask, image, (t,))[t].sum() for t in (0.5, 1, 8)]
    assert small == sorted(small)


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


def test_watershed_keeps_whole_lesions_and_drops_specks():
    lesions = disc((128, 128), (40, 40), 16) | disc((128, 128), (90, 90), 14)
    mask = np.full((128, 128), 20, np.uint8)
    mask[lesions] = 220
    mask[10:12, 100:102] = 255  # opened away
    assert jaccard(segment(mask, 'watershed'), lesions) > 0.85
    assert not segment(mask, 'watershed')[5:20, 95:110].any()


def test_watershed_fills_a_lesion_that_touches_the_border():
    mask = np.full((64, 64), 20, np.uint8)
    mask[20:44, :24] = 220
    found = segment(mask, 'watershed')
    assert found[24:40, 0].all() and jaccard(found, mask > 127) > 0.8


@pytest.mark.parametrize('level', [0, 255, 128])
@pytest.mark.parametrize('rule', postprocess.RULES)
def test_masks_of_one_level(rule, level):
    """otsu, watershed and fit find nothing; threshold follows the level; crf is never in doubt about
    an empty or a full mask."""
    mask = np.full((24, 32), level, np.uint8)
    image = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    found = segment(mask, rule, image)
    assert found.dtype == bool and found.shape == mask.shape
    if rule in ('otsu', 'watershed', 'clean', 'fit') or level == 0:
        assert not found.any()
    elif rule == 'threshold' or level == 255:
        assert found.all()


def test_in_a_picture_of_one_colour_the_crf_lets_the_majority_win():
    """There are no edges to stop at; the result still is a number everywhere."""
    lesion = disc((32, 32), (16, 16), 8)
    for most, expected in ((lesion, False), (~lesion, True)):
        mask = postprocess.to_bytes(most * 0.8 + 0.1)
        assert (segment(mask, 'crf', np.zeros((32, 32, 3), np.uint8)) == expected).all()
    probability = DenseCRF(np.zeros((32, 32, 3), np.uint8)).infer(np.eye(32))
    assert np.isfinite(probability).all()


def test_specks_and_slivers_leave_watershed_nothing():
    mask = np.zeros((40, 40), np.uint8)
    mask[::7, ::7] = 255
    assert not segment(mask, 'watershed').any()


@pytest.mark.parametrize('shape', [(1, 1), (1, 50), (3, 3)])
@pytest.mark.parametrize('rule', postprocess.RULES)
def test_tiny_pictures(rule, shape):
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 255, shape, dtype=np.uint8)
    image = rng.integers(0, 255, (*shape, 3), dtype=np.uint8)
    assert segment(mask, rule, image).shape == shape


@pytest.mark.parametrize('rule', ['watershed', 'crf'])
def test_large_pictures_are_worked_on_at_the_published_size(rule):
    """Sizes in these rules are in px of 256 px pictures, so the result scales with the picture."""
    small = disc((200, 256), (100, 128), 60)
    large = disc((600, 768), (300, 384), 180)

    def found(lesion):
        mask = postprocess.to_bytes(lesion * 0.8 + 0.1)
        return segment(mask, rule, np.where(lesion[..., None], 80, 200).astype(np.uint8)
                       .repeat(3, -1))

    assert found(large).shape == large.shape
    assert jaccard(found(large), found(small).repeat(3, 0).repeat(3, 1)) > 0.95


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match='magic'):
        segment(np.zeros((4, 4), np.uint8), 'magic')


def test_corners_are_cleared_in_scale():
    full = clear_corners(np.ones((256, 256), bool))
    triangle = np.add.outer(np.arange(256), np.arange(256)) < 79  # leg 80: 80·81/2 px less the rim
    for turned in range(4):
        corner = np.rot90(full, turned)
        assert not corner[triangle].any() and corner[81, 0] and corner[0, 81]
    wide = clear_corners(np.ones((64, 128), bool))
    assert not wide[0, 38] and wide[0, 41] and not wide[18, 0] and wide[21, 0]
    assert clear_corners(np.zeros((8, 8), bool)).sum() == 0


def test_a_teaching_target_is_cleaned_and_fitted():
    lesion = disc((128, 128), (64, 64), 20)
    soft = postprocess.to_bytes((disc((128, 128), (64, 64), 23) | disc((128, 128), (10, 10), 4)) * 0.8)
    image = np.where(lesion[..., None], 60, 180).astype(np.uint8).repeat(3, 2)
    plain = postprocess.teaching_target(soft, image, Lesions(), fit=False)
    fitted = postprocess.teaching_target(soft, image, Lesions(), fit=True)
    assert not plain[10, 10] and jaccard(plain, lesion) < 0.8 < 0.95 < jaccard(fitted, lesion)
    assert (segment(soft, 'fit', image) == fitted).all()
    assert (segment(soft, 'clean') == plain).all()
