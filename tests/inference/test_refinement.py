"""Outlines of lesions: cleaned, snapped to color edges, cut by GrabCut, smoothed and dilated."""
import cv2
import numpy as np
import pytest
from scipy import ndimage

from helpers import disc
from inference import refinement
from inference.metrics import jaccard
from inference.postprocess import segment, to_bytes
from inference.refinement import clean, grabcut, refine, smooth_and_dilate, snap_to_color_edges

SIZE, CENTER = (128, 128), (64, 64)


def noisy(image: np.ndarray, deviation: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, deviation, image.shape)
    return (image + noise).clip(0, 255).astype(np.uint8)


def test_cleaning():
    shape = (100, 100)
    lesion, hole = disc(shape, (50, 55), 20), disc(shape, (50, 55), 8)
    corner, speck = disc(shape, (0, 0), 35), disc(shape, (90, 90), 5)
    segmentation = lesion & ~hole | corner | speck
    segmentation[50, 95] = True
    for keep_components, kept in (('central', lesion), ('large', lesion | corner),
                                  ('all', lesion | corner | speck)):
        assert jaccard(clean(segmentation, keep_components), kept) > 0.98
        assert not clean(np.zeros(shape, bool), keep_components).any()
        assert clean(np.ones(shape, bool), keep_components).all()
    # a speck at the center does not win over the lesion
    lesion, speck = disc(shape, (42, 42), 22), disc(shape, (66, 66), 3)
    assert jaccard(clean(lesion | speck, 'central'), lesion) > 0.98


def segmentations() -> list[np.ndarray]:
    """Blobs with holes of several sizes of image, some at its border; a full and a tiny one."""
    shapes = (96, 96), (100, 128), (70, 31), (270, 200), (5, 40)
    noise = [np.random.default_rng(number).normal(size=shape)
             for number, shape in enumerate(shapes)]
    blobs = [cv2.GaussianBlur(values, (0, 0), max(shape) / 18) > 0
             for values, shape in zip(noise, shapes, strict=True)]
    parts = [blob & disc(blob.shape, (blob.shape[0] / 2, blob.shape[1] / 3), max(blob.shape) / 4)
             for blob in blobs]
    return [*blobs, *parts, np.ones((40, 30), bool), np.ones((1, 1), bool)]


def test_morphology_row_by_row_is_that_of_the_whole_disc():
    for segmentation in segmentations():
        part = segmentation.astype(np.uint8)
        filled = ndimage.binary_fill_holes(np.pad(segmentation, 1))[1:-1, 1:-1]
        assert (refinement.fill_holes(part) == filled).all()
        for radius in (1, 2, 4.4, 12, 40):
            element = refinement.disc(radius)
            assert (refinement.dilate(part, radius) == cv2.dilate(part, element)).all()
            assert (refinement.erode(part, radius) == cv2.erode(part, element)).all()


def snapped_plainly(segmentation: np.ndarray, image: np.ndarray, reach: float = 12,
                    core: float = 12) -> np.ndarray:
    """`snap_to_color_edges` of the whole image, as its docstring says it."""
    scale = refinement.scale_of(segmentation)
    colors = refinement.blurred_lab(image, scale).astype(np.float32)
    near, inner = (operation(segmentation.astype(np.uint8), refinement.disc(px * scale)) > 0
                   for operation, px in ((cv2.dilate, reach), (cv2.erode, core)))
    for _ in range(refinement.MAX_ROUNDS):
        parts = segmentation, near & ~segmentation
        if not all(part.any() for part in parts):
            break
        to_lesion, to_surroundings = (np.square(colors - np.median(colors[part], 0)).sum(2)
                                      for part in parts)
        nearer = (to_lesion < to_surroundings) | (to_lesion == to_surroundings) & segmentation
        moved = cv2.morphologyEx((near & nearer | inner).astype(np.uint8), cv2.MORPH_OPEN,
                                 np.ones((3, 3), np.uint8)) > 0
        if (moved == segmentation).all():
            break
        segmentation = moved
    return segmentation


def drawn_plainly(segmentation: np.ndarray, margin: float) -> np.ndarray:
    """`smooth_and_dilate` of the whole image, far beyond its border."""
    scale = refinement.scale_of(segmentation)
    border = 3 * int(np.ceil(40 * scale))
    padded = np.pad(segmentation.astype(np.uint8), border, 'edge')
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, refinement.disc(40 * scale))
    filled = ndimage.binary_fill_holes(closed).astype(np.float32)
    smooth = (cv2.GaussianBlur(filled, (0, 0), 4 * scale) > 0.5).astype(np.uint8)
    dilated = cv2.dilate(smooth, refinement.disc(margin * scale))
    return dilated[border:-border, border:-border] > 0


def test_the_part_around_a_lesion_decides_as_the_whole_image_does():
    for number, segmentation in enumerate(segmentations()):
        rng = np.random.default_rng(number)
        colors = cv2.GaussianBlur(rng.normal(size=(*segmentation.shape, 3)), (0, 0), 7) * 700
        image = np.where(segmentation[..., None], 110, 140) + colors + rng.integers(-9, 9)
        image = image.clip(0, 255).astype(np.uint8)
        for reach, core in ((12, 12), (4, 30)):
            assert (snap_to_color_edges(segmentation, image, reach, core)
                    == snapped_plainly(segmentation, image, reach, core)).all()
        assert (smooth_and_dilate(segmentation, 2) == drawn_plainly(segmentation, 2)).all()


def test_an_outline_moves_to_where_colors_change():
    lesion = disc(SIZE, (60, 70), 20)
    image = noisy(np.where(lesion[..., None], (150, 90, 70), (210, 170, 150)), 6)
    for center, radius in (((60, 70), 23), ((60, 70), 15), ((62, 72), 20)):
        segmentation = disc(SIZE, center, radius)
        snapped = snap_to_color_edges(segmentation, image)
        assert jaccard(snapped, lesion) > 0.93 > jaccard(segmentation, lesion)


def test_gray_images_have_edges_as_well():
    lesion, segmentation = disc(SIZE, CENTER, 18), disc(SIZE, CENTER, 22)
    gray = np.where(lesion, 60, 180).astype(np.uint8)
    snapped = snap_to_color_edges(segmentation, gray)
    assert jaccard(snapped, lesion) > 0.95
    assert (snapped == snap_to_color_edges(segmentation, gray[..., None].repeat(3, 2))).all()


def test_snapping_keeps_within_reach_and_keeps_the_core():
    segmentation = disc((256, 256), (128, 128), 40)
    black = np.zeros((256, 256, 3), np.uint8)
    assert jaccard(snap_to_color_edges(segmentation, black), segmentation) > 0.99  # no edges
    assert not snap_to_color_edges(np.zeros_like(segmentation), black).any()
    spot = disc((256, 256), (128, 128), 10)  # dark, in the center of the lesion
    image = np.where(spot[..., None], 0, 200).astype(np.uint8).repeat(3, 2)
    snapped = snap_to_color_edges(segmentation, image)
    assert snapped[disc((256, 256), (128, 128), 27)].all()  # deeper than 12 px
    right = np.zeros((256, 256, 3), np.uint8)
    right[:, 100:] = 200  # the lesion's color continues to the right border
    grown = snap_to_color_edges(disc((256, 256), (128, 128), 20), right)
    assert not grown[~disc((256, 256), (128, 128), 38)].any()  # 16 px at most


def test_grabcut_takes_all_shades_of_a_lesion():
    lesion, dark = disc(SIZE, CENTER, 26), disc(SIZE, (64, 56), 12)
    pale = np.where(lesion[..., None], (170, 110, 90), (210, 180, 170))
    image = noisy(np.where(dark[..., None], (90, 50, 40), pale), 5)
    segmentation = disc(SIZE, (64, 58), 17)  # the dark part and a little of the pale one
    cut = grabcut(segmentation, image)
    assert jaccard(segmentation, lesion) < 0.5 < 0.9 < jaccard(cut, lesion)
    assert (cut == grabcut(segmentation, image)).all()  # though it begins with a random clustering


@pytest.mark.parametrize('gray', [0, 128, 255])
def test_grabcut_of_masks_and_images_that_decide_nothing(gray):
    image, spot = np.full((*SIZE, 3), gray, np.uint8), disc(SIZE, CENTER, 1)
    for segmentation in (spot, ~spot):
        cut = grabcut(segmentation, image)
        assert cut.dtype == bool and cut.shape == SIZE
    for segmentation in (np.zeros_like(spot), np.ones_like(spot)):
        assert np.array_equal(grabcut(segmentation, image), segmentation)


def test_a_drawn_outline_passes_over_bays_and_keeps_a_margin():
    whole = disc((256, 256), (128, 128), 60)
    bay = np.zeros_like(whole)
    bay[60:110, 120:136] = True  # from the rim inwards
    drawn = smooth_and_dilate(whole & ~bay, 2)
    assert drawn[whole].all() and not drawn[~disc((256, 256), (128, 128), 65)].any()
    assert not smooth_and_dilate(np.zeros_like(whole), 2).any()
    assert smooth_and_dilate(np.ones_like(whole), 2).all()
    half = np.zeros_like(whole)
    half[:, :100] = True  # at the border of the image nothing is rounded off
    drawn = smooth_and_dilate(half, 2)
    assert drawn[:, :100].all() and not drawn[:, 104:].any()
    scaled = smooth_and_dilate(whole[::2, ::2], 2).sum() * 4 / smooth_and_dilate(whole, 2).sum()
    assert abs(scaled - 1) < 0.05


def test_color_edges_and_grabcut_with_its_margin():
    lesion = disc(SIZE, CENTER, 20)
    image = np.where(lesion[..., None], 60, 180).astype(np.uint8).repeat(3, 2)
    segmentation = disc(SIZE, CENTER, 17)
    snapped, drawn = (refine(segmentation, image, how, 'large')
                      for how in ('color_edges', 'grabcut'))
    assert jaccard(snapped, lesion) > 0.95
    assert (drawn & lesion).sum() > 0.95 * lesion.sum()
    assert (drawn & ~segmentation).sum() > 0 and not drawn[~disc(SIZE, CENTER, 24)].any()
    assert (segment(to_bytes(segmentation * 0.8), 'grabcut', image) == drawn).all()
