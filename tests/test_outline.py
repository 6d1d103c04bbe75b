"""Outlines of lesions: cleaned, fitted to the picture, cut out, drawn smoothly."""
import numpy as np
import pytest

import outline
from conftest import disc, jaccard
from outline import clean, fit_to_picture
from postprocess import segment, to_bytes
from settings import Lesions


def test_cleaning_a_target():
    shape = (100, 100)
    ring = disc(shape, (50, 55), 20) & ~disc(shape, (50, 55), 8)
    corner, speck = disc(shape, (0, 0), 35), disc(shape, (90, 90), 5)
    segmentation = ring | corner | speck
    segmentation[50, 95] = True
    whole = disc(shape, (50, 55), 20)
    assert jaccard(clean(segmentation, 'central'), whole) > 0.98
    assert jaccard(clean(segmentation, 'large'), whole | corner) > 0.98
    assert jaccard(clean(segmentation, 'all'), whole | corner | speck) > 0.98
    for component in ('central', 'large', 'all'):
        assert not clean(np.zeros(shape, bool), component).any()
        assert clean(np.ones(shape, bool), component).all()


def test_a_central_speck_does_not_win_over_the_lesion():
    lesion, speck = disc((100, 100), (42, 42), 22), disc((100, 100), (66, 66), 3)
    assert jaccard(clean(lesion | speck, 'central'), lesion) > 0.98


def test_fitting_moves_an_outline_to_where_the_picture_changes():
    lesion = disc((128, 128), (60, 70), 20)
    rng = np.random.default_rng(0)
    image = np.where(lesion[..., None], (150, 90, 70), (210, 170, 150)) + rng.normal(0, 6, (128, 128, 3))
    image = image.clip(0, 255).astype(np.uint8)
    for found in (disc((128, 128), (60, 70), 23), disc((128, 128), (60, 70), 15),
                  disc((128, 128), (62, 72), 20)):
        before = jaccard(found, lesion)
        after = jaccard(fit_to_picture(found, image), lesion)
        assert after > 0.93 > before


def test_lean_says_whether_a_pale_margin_is_lesion():
    inner, outer = disc((128, 128), (64, 64), 18), disc((128, 128), (64, 64), 24)
    # a margin whose grey lies in the middle
    grey = np.where(inner, 60, np.where(outer, 120, 180)).astype(np.uint8)
    image = grey[..., None].repeat(3, 2)
    narrow, wide = (fit_to_picture(disc((128, 128), (64, 64), 20), image, lean)
                    for lean in (1, 2))
    assert jaccard(narrow, inner) > 0.9 and jaccard(wide, outer) > 0.9
    soft = to_bytes(disc((128, 128), (64, 64), 20) * 0.8)
    assert (segment(soft, 'fit', image, lesions=Lesions(lean=2)) == wide).all()


def test_fitting_keeps_within_reach_and_keeps_the_core():
    found = disc((256, 256), (128, 128), 40)
    black = np.zeros((256, 256, 3), np.uint8)
    assert jaccard(fit_to_picture(found, black), found) > 0.99  # nothing to go by
    assert not fit_to_picture(np.zeros_like(found), black).any()
    inside = disc((256, 256), (128, 128), 10)  # a dark spot in the middle of the lesion
    image = np.where(inside[..., None], 0, 200).astype(np.uint8).repeat(3, 2)
    fitted = fit_to_picture(found, image)
    assert fitted[disc((256, 256), (128, 128), 33)].all()  # deeper than 6 px
    right = np.zeros((256, 256, 3), np.uint8)
    right[:, 100:] = 200  # the lesion's colour goes on to the right border
    grown = fit_to_picture(disc((256, 256), (128, 128), 20), right)
    assert not grown[~disc((256, 256), (128, 128), 38)].any()  # 16 px at most


def test_a_graph_cut_takes_all_shades_of_a_lesion():
    lesion, dark = disc((128, 128), (64, 64), 26), disc((128, 128), (64, 56), 12)
    rng = np.random.default_rng(0)
    image = np.where(dark[..., None], (90, 50, 40), np.where(lesion[..., None], (170, 110, 90), (210, 180, 170)))
    image = (image + rng.normal(0, 5, image.shape)).clip(0, 255).astype(np.uint8)
    found = disc((128, 128), (64, 58), 17)  # the dark part and a little of the pale one
    by_cut = outline.cut_out(found, image)
    assert jaccard(found, lesion) < 0.5 < 0.9 < jaccard(by_cut, lesion)
    assert (by_cut == outline.cut_out(found, image)).all()  # though it begins with a random clustering


@pytest.mark.parametrize('found', [np.zeros((64, 64), bool), np.ones((64, 64), bool),
                                   disc((64, 64), (32, 32), 1), ~disc((64, 64), (32, 32), 1)])
@pytest.mark.parametrize('grey', [0, 128, 255])
def test_a_graph_cut_of_nothing_to_go_by(found, grey):
    image = np.full((64, 64, 3), grey, np.uint8)
    made = outline.cut_out(found, image)
    assert made.dtype == bool and made.shape == found.shape
    if found.all() or not found.any():
        assert (made == found).all()


def test_a_drawn_line_passes_over_bays_and_keeps_a_margin():
    whole = disc((256, 256), (128, 128), 60)
    bay = np.zeros_like(whole)
    bay[60:110, 120:136] = True  # from the rim inwards
    drawn = outline.with_margin(whole & ~bay, 2)
    assert drawn[whole].all() and not drawn[~disc((256, 256), (128, 128), 65)].any()
    assert not outline.with_margin(np.zeros_like(whole), 2).any()
    assert outline.with_margin(np.ones_like(whole), 2).all()
    half = np.zeros_like(whole)
    half[:, :100] = True  # at the border of the picture nothing is rounded off
    assert outline.with_margin(half, 2)[:, :100].all() and not outline.with_margin(half, 2)[:, 104:].any()
    quarter = np.asarray(whole[::2, ::2])
    assert abs(outline.with_margin(quarter, 2).sum() * 4 / outline.with_margin(whole, 2).sum() - 1) < 0.05


def test_drawing_an_outline_follows_what_is_known_of_lesions():
    lesion = disc((128, 128), (64, 64), 20)
    image = np.where(lesion[..., None], 60, 180).astype(np.uint8).repeat(3, 2)
    found = disc((128, 128), (64, 64), 17)
    plain = outline.draw(found, image, Lesions())
    drawn = outline.draw(found, image, Lesions(cut=True, margin=2))
    assert jaccard(plain, lesion) > 0.95
    assert drawn[lesion].all() and 0 < (drawn & ~lesion).sum() < 2.5 * 2 * np.pi * 20
    soft = to_bytes(found * 0.8)
    assert (segment(soft, 'fit', image, lesions=Lesions(cut=True, margin=2)) == drawn).all()
