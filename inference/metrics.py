"""The metrics of a segmentation against a label, and their summaries over images."""
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Confusion(NamedTuple):
    """Pixels of a segmentation by what the label says of them; positive is lesion."""
    tp: int
    fp: int
    fn: int
    tn: int


class Metric(NamedTuple):
    name: str  # in full
    meaning: str
    percent: Callable[[Confusion], float]


def ratio(part: int, whole: int) -> float:
    """In percent; 0/0 is 100: there was nothing to find, and nothing was missed."""
    return 100.0 * part / whole if whole else 100.0


# Every metric of the program; logs, tables and reports follow this table, in its order.
METRICS = {
    'JA': Metric('Jaccard index', 'pixels that are lesion in both segmentation and label, as a '
                 'share of those that are lesion in either',
                 lambda count: ratio(count.tp, count.tp + count.fp + count.fn)),
    'AC': Metric('accuracy', 'share of all pixels that are correctly classified as lesion or not '
                 'lesion', lambda count: ratio(count.tp + count.tn, sum(count))),
    'DI': Metric('Dice coefficient', 'twice the pixels that are lesion in both, as a share of the '
                 'two lesions’ sizes together',
                 lambda count: ratio(2 * count.tp, 2 * count.tp + count.fp + count.fn)),
    'SE': Metric('sensitivity', 'share of the label’s lesion that was found',
                 lambda count: ratio(count.tp, count.tp + count.fn)),
    'SP': Metric('specificity', 'share of the label’s surroundings that was not segmented',
                 lambda count: ratio(count.tn, count.tn + count.fp)),
}
METRIC_INFO = {short: (metric.name, metric.meaning) for short, metric in METRICS.items()}
SUMMARIES = {'mean': np.mean, 'median': np.median, 'lowest': np.min, 'highest': np.max}


def segmentation_metrics(prediction: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Every metric, in percent, of two boolean masks of one shape; raises ValueError for two
    shapes. Where both masks are empty, every metric is 100."""
    if prediction.shape != label.shape:
        raise ValueError(f'prediction {prediction.shape} and label {label.shape} differ in shape')
    tp, fp, fn = (int(np.count_nonzero(pixels)) for pixels in
                  (prediction & label, prediction & ~label, ~prediction & label))
    count = Confusion(tp, fp, fn, prediction.size - tp - fp - fn)
    return {short: metric.percent(count) for short, metric in METRICS.items()}


def mean_metrics(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The average of each metric over images, as published; {} where no image has a label."""
    return summarize(rows).get('mean', {})


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean, median, lowest and highest of each metric over images, rows of `segmentation_metrics`
    that may hold more keys: {'mean': {'JA': …}, …}; {} where no image has a label."""
    if not rows:
        return {}
    return {summary: {short: float(function([row[short] for row in rows])) for short in METRICS}
            for summary, function in SUMMARIES.items()}


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """The Jaccard index of two boolean masks of one shape, 0 to 1; 1 of two empty ones."""
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 1.0


def paired_bootstrap(one: Sequence[float], other: Sequence[float], resamples: int = 10_000,
                     seed: int = 0) -> tuple[float, float]:
    """95 % interval of mean(other − one) over images, by resampling the images; `one` and `other`
    are one metric of the same images under two methods, in the same order."""
    differences = np.asarray(other, float) - np.asarray(one, float)
    rng = np.random.default_rng(seed)
    samples = rng.integers(0, len(differences), (resamples, len(differences)))
    low, high = np.percentile(differences[samples].mean(1), (2.5, 97.5))
    return float(low), float(high)
