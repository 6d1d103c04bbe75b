"""Five figures and the Otsu segmentation: known answers and the defined edge cases."""
import numpy as np
import pytest

from metrics import FIGURES, five_figures, mean_figures, paired_bootstrap
from postprocess import clear_background, otsu, to_bytes


def test_known_answer():
    prediction = np.array([[1, 1, 0, 0, 0]], bool)
    label = np.array([[1, 0, 1, 1, 0]], bool)  # TP 1, FP 1, FN 2, TN 1
    figures = five_figures(prediction, label)
    assert figures == pytest.approx({'JA': 25, 'AC': 40, 'DI': 40, 'SE': 100 / 3, 'SP': 50})


def test_nothing_asked_nothing_missed():
    empty, full = np.zeros((3, 3), bool), np.ones((3, 3), bool)
    assert set(five_figures(empty, empty).values()) == {100}
    assert five_figures(full, full) == dict.fromkeys(FIGURES, 100)
    assert five_figures(full, empty) == {'JA': 0, 'AC': 0, 'DI': 0, 'SE': 100, 'SP': 0}
    assert five_figures(empty, full) == {'JA': 0, 'AC': 0, 'DI': 0, 'SE': 0, 'SP': 100}


def test_dice_follows_from_jaccard():
    rng = np.random.default_rng(0)
    for _ in range(20):
        prediction, label = rng.random((2, 8, 8)) > 0.5
        figures = five_figures(prediction, label)
        ja = figures['JA'] / 100
        assert figures['DI'] == pytest.approx(100 * 2 * ja / (1 + ja))


def test_other_shape_is_refused():
    with pytest.raises(ValueError, match='shape'):
        five_figures(np.zeros((2, 2), bool), np.zeros((3, 3), bool))


def test_mean_over_images():
    rows = [dict.fromkeys(FIGURES, 0.0), dict.fromkeys(FIGURES, 50.0)]
    assert mean_figures(rows) == dict.fromkeys(FIGURES, 25.0)
    assert mean_figures([]) == {}


def test_otsu_parts_two_levels():
    mask = np.full((20, 20), 30, np.uint8)
    mask[5:9, 5:9] = 200
    assert np.array_equal(otsu(mask), mask == 200)


@pytest.mark.parametrize('level', [0, 7, 255])
def test_otsu_of_one_level_is_empty(level):
    assert not otsu(np.full((9, 9), level, np.uint8)).any()


def test_bytes_of_a_soft_mask():
    assert to_bytes(np.array([[-1, 0, 0.5, 1, 2]])).tolist() == [[0, 0, 128, 255, 255]]


def test_black_background_holds_no_lesion():
    image = np.full((4, 4, 3), 0.2)
    image[0] = -1
    image[1, :, 0] = -1  # one channel at the minimum is no background
    cleared = clear_background(np.full((4, 4), 0.8), image)
    assert (cleared[0] == 0).all() and (cleared[1:] == 0.8).all()


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
