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


# The metrics in percent; logs, tables and reports follow this table, in its order.
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
# Distances between surfaces: name, meaning, and in which unit. Those in mm need a known spacing.
DISTANCES = {
    f'{short}{ending}': (f'{name}, {unit}', meaning, unit)
    for ending, unit in (('', 'px'), ('_mm', 'mm'))
    for short, name, meaning in (
        ('HD95', '95th percentile Hausdorff distance', 'of the distances from each surface to the '
         'other the 95th percentile, the larger of the two; undefined where a mask is empty'),
        ('ASSD', 'average symmetric surface distance', 'mean distance from all points of both '
         'surfaces to the other one; undefined where a mask is empty'))}
# short name -> full name, meaning, unit
METRIC_INFO = {short: (metric.name, metric.meaning, '%')
               for short, metric in METRICS.items()} | DISTANCES
SUMMARIES = ('mean', '95 % from', '95 % to', 'median', 'lowest', 'highest', 'undefined')
RESAMPLES = 10_000  # of a bootstrap
CHUNK = 2 ** 22  # numbers of a bootstrap that are in memory at a time


def segmentation_metrics(prediction: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Every metric, in percent, of two boolean masks of one shape; raises ValueError for two
    shapes. Where both masks are empty, every metric is 100."""
    if prediction.shape != label.shape:
        raise ValueError(f'prediction {prediction.shape} and label {label.shape} differ in shape')
    tp, fp, fn = (int(np.count_nonzero(pixels)) for pixels in
                  (prediction & label, prediction & ~label, ~prediction & label))
    count = Confusion(tp, fp, fn, prediction.size - tp - fp - fn)
    return {short: metric.percent(count) for short, metric in METRICS.items()}


def all_metrics(prediction: np.ndarray, label: np.ndarray,
                spacing: Sequence[float] | None = None) -> dict[str, float | None]:
    """`segmentation_metrics`, and DISTANCES of two boolean masks H×W or X×Y×Z: in px, with a
    `spacing` (mm along each axis) in mm as well; None where one of the masks is empty."""
    metrics = segmentation_metrics(prediction, label)
    points = surface_points(prediction, label)
    spacings = {'': np.ones(label.ndim)} | ({} if spacing is None else {'_mm': spacing})
    for ending, per_axis in spacings.items():
        metrics |= {f'{short}{ending}': distance for short, distance in zip(
            ('HD95', 'ASSD'), surface_distances(*(of_mask * np.asarray(per_axis, float)
                                                  for of_mask in points)), strict=True)}
    return metrics


def surface_distances(one: np.ndarray, other: np.ndarray) -> tuple[float | None, float | None]:
    """HD95 and ASSD of two surfaces, points N×axes each; None of one without points. HD95 is the
    larger 95th percentile of the two directions, as in MONAI and surface-distance (pooling the
    directions, as others do, lets a small surface hide behind a large one); ASSD is the mean over
    the points of both (Heimann et al. 2009)."""
    if not (len(one) and len(other)):
        return None, None
    # trees of these two kinds are built faster, and grids of points need no balance
    from scipy.spatial import KDTree  # here: prediction needs no scipy
    trees = [KDTree(points, compact_nodes=False, balanced_tree=False) for points in (one, other)]
    there, back = trees[1].query(one)[0], trees[0].query(other)[0]
    return (float(max(np.percentile(there, 95), np.percentile(back, 95))),
            float((there.sum() + back.sum()) / (len(there) + len(back))))


def surface_points(*masks: np.ndarray) -> list[np.ndarray]:
    """Indices N×axes of the surface of each of several masks of one shape, counted from a corner of
    the box around all of them."""
    from scipy.ndimage import find_objects
    box = find_objects(np.any(masks, 0).astype(np.uint8))
    return [np.argwhere(surface(mask[box[0]] if box else mask)) for mask in masks]


def surface(region: np.ndarray) -> np.ndarray:
    """Points of a region, bool of any axes, that lie at the border or share a face with others."""
    inner = region.copy()
    for axis in range(region.ndim):
        within, of_region = np.moveaxis(inner, axis, 0), np.moveaxis(region, axis, 0)
        within[1:] &= of_region[:-1]
        within[:-1] &= of_region[1:]
        within[[0, -1]] = False
    return region & ~inner


def defined(rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """The values of each metric that rows hold, in those rows where it is known and defined."""
    return {short: [row[short] for row in rows if row.get(short) is not None]
            for short in METRIC_INFO if any(short in row for row in rows)}


def mean_metrics(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The average of each metric over the images where it is defined, None if that is none; {}
    where no image has a label."""
    return {short: float(np.mean(values)) if values else None
            for short, values in defined(rows).items()}


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Mean, its 95 % interval (`bootstrap`), median, lowest and highest of each metric over images,
    rows of `segmentation_metrics` or `all_metrics` that may hold more keys: {'mean': {'JA': …}, …};
    of distances also how many are undefined, which the rest leaves out. {} without a label."""
    by_metric = {}
    for short, values in defined(rows).items():
        low, high = bootstrap(values)
        ends = [float(function(values)) if values else None
                for function in (np.mean, np.median, np.min, np.max)]
        undefined = sum(row.get(short, 0) is None for row in rows)
        by_metric[short] = (ends[0], low, high, *ends[1:], undefined)
    names = SUMMARIES if set(by_metric) & set(DISTANCES) else SUMMARIES[:-1]
    return {name: {short: numbers[index] for short, numbers in by_metric.items()}
            for index, name in enumerate(names)} if by_metric else {}


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """The Jaccard index of two boolean masks of one shape, 0 to 1; 1 of two empty ones."""
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 1.0


def bootstrap(values: Sequence[float], resamples: int = RESAMPLES,
              seed: int = 0) -> tuple[float, float] | tuple[None, None]:
    """95 % interval of the mean over images, by resampling the images (percentiles); None and None
    of fewer than two."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return None, None
    rng, means = np.random.default_rng(seed), []
    step = max(1, CHUNK // len(values))
    for start in range(0, resamples, step):
        shape = min(step, resamples - start), len(values)
        means.append(values[rng.integers(0, len(values), shape)].mean(1))
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return float(low), float(high)


def paired_bootstrap(one: Sequence[float], other: Sequence[float], resamples: int = RESAMPLES,
                     seed: int = 0) -> tuple[float, float] | tuple[None, None]:
    """As `bootstrap`, of mean(other − one); `one` and `other` are one metric of the same images
    under two methods, in the same order."""
    return bootstrap(np.asarray(other, float) - np.asarray(one, float), resamples, seed)
