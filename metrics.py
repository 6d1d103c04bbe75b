"""The five figures of two binary masks, and their averages."""
import numpy as np

FIGURES = ('JA', 'AC', 'DI', 'SE', 'SP')


def five_figures(prediction: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """JA, AC, DI, SE and SP in percent, of two boolean masks of one shape.

    JA = TP/(TP+FP+FN) (Jaccard index), AC = (TP+TN)/all, DI = 2TP/(2TP+FP+FN) (Dice),
    SE = TP/(TP+FN), SP = TN/(TN+FP). A ratio 0/0 is 100: nothing was asked, nothing was missed
    (empty prediction of an empty label: all five are 100).
    """
    if prediction.shape != label.shape:
        raise ValueError(f'prediction {prediction.shape} and label {label.shape} differ in shape')
    tp = int(np.count_nonzero(prediction & label))
    fp = int(np.count_nonzero(prediction & ~label))
    fn = int(np.count_nonzero(~prediction & label))
    tn = prediction.size - tp - fp - fn

    def percent(part, whole):
        return 100.0 * part / whole if whole else 100.0

    return {'JA': percent(tp, tp + fp + fn), 'AC': percent(tp + tn, prediction.size),
            'DI': percent(2 * tp, 2 * tp + fp + fn),
            'SE': percent(tp, tp + fn), 'SP': percent(tn, tn + fp)}


def mean_figures(rows: list[dict]) -> dict[str, float]:
    """The average of each figure over images, as published; {} where no image has a label."""
    if not rows:
        return {}
    return {figure: float(np.mean([row[figure] for row in rows])) for figure in FIGURES}


def paired_bootstrap(one, other, resamples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of mean(other − one) over images, by resampling the images.

    `one` and `other` are the same figure of the same images, under two methods.
    """
    differences = np.asarray(other, float) - np.asarray(one, float)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(differences), (resamples, len(differences)))
    low, high = np.percentile(differences[drawn].mean(1), (2.5, 97.5))
    return float(low), float(high)
