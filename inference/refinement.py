"""Where the outline of a lesion lies: cleaned, moved to color edges, cut by GrabCut, smoothed.
Arrays in, arrays out: segmentations H×W bool, images uint8 H×W×3 RGB or H×W, as large as the
segmentation. All lengths are px of a 256 px image and scale with the segmentation.
Source: ours; every default was chosen on val (docs/ablations.md)."""
import math
from collections.abc import Callable

import cv2
import numpy as np

REFERENCE_SIZE = 256  # px, the images that lengths here belong to
CORE = 12  # px
BLUR = 1.5  # px, σ, before colors are compared
CLOSING_RADIUS = 40  # px
SMOOTHING = 4  # px, σ
MARGIN = 2  # px that experts draw outside a lesion found by GrabCut
SQUARE = np.ones((3, 3), np.uint8)  # of openings, of any image size
MAX_ROUNDS = 10  # of moving the outline and taking the medians again
GRABCUT_ROUNDS = 3


def refine(segmentation: np.ndarray, image: np.ndarray, how: str,
           keep_components: str) -> np.ndarray:
    """The segmentation with its outline where experts draw it, cleaned. `how`: `color_edges`, for
    lesions of one color against their surroundings; `grabcut`, for those of several shades or of
    which only a part was found, whose outline is drawn smooth and a little outside."""
    if how == 'color_edges':
        return clean(snap_to_color_edges(segmentation, image), keep_components)
    return smooth_and_dilate(clean(grabcut(segmentation, image), keep_components), MARGIN)


def clean(segmentation: np.ndarray, keep_components: str) -> np.ndarray:
    """The segmentation opened 3×3, its holes filled, and of its connected components those that
    `keep_components` names: `all`; `large`, all of at least 0.3 of the largest; or `central`, since
    a lesion mostly is photographed in the middle: the one with the largest Σ exp(−d²/2σ²) over its
    pixels, d from the center of the image, σ a quarter of its side. Size and place both count, so
    a spot in the very center does not win over the lesion around it."""
    # OpenCV continues the image beyond the border
    opened = cv2.morphologyEx(segmentation.astype(np.uint8), cv2.MORPH_OPEN, SQUARE)
    filled = fill_holes(opened)
    count, labels = cv2.connectedComponents(filled.view(np.uint8))
    if keep_components == 'all' or count <= 2:
        return filled
    if keep_components == 'large':
        sizes = np.bincount(labels.ravel(), minlength=count)
        sizes[0] = 0
        return (sizes >= 0.3 * sizes.max())[labels] & filled
    height, width = filled.shape
    rows = ((np.arange(height)[:, None] + 0.5) / height - 0.5) / 0.25
    columns = ((np.arange(width)[None] + 0.5) / width - 0.5) / 0.25
    closeness = np.exp(-(rows ** 2 + columns ** 2) / 2)
    scores = np.bincount(labels.ravel(), closeness.ravel(), minlength=count)
    return labels == 1 + scores[1:].argmax()


def snap_to_color_edges(segmentation: np.ndarray, image: np.ndarray, reach: float = 12,
                        core: float = CORE) -> np.ndarray:
    """The segmentation with its outline moved to where the image's colors change. Within `reach` of
    the segmentation every pixel goes to the side, lesion or surroundings, whose median color
    (CIELAB, slightly blurred) is nearer; the medians are taken again until nothing changes,
    MAX_ROUNDS times at most. What lies deeper than `core` stays lesion."""
    if not segmentation.any():
        return segmentation
    scale = scale_of(segmentation)
    # the part that can change, and around it what is blurred into it
    box = bounding_box(segmentation, math.ceil((reach + 4 * BLUR) * scale) + 3)
    colors = blurred_lab(image[box], scale)
    as_float = colors.astype(np.float32)
    lesion = segmentation[box].astype(np.uint8)
    near, inner = dilate(lesion, reach * scale), erode(lesion, core * scale)
    for _ in range(MAX_ROUNDS):
        surroundings = near & ~lesion
        if not surroundings.any() or not lesion.any():
            break
        # 4·(|c − a|² − |c − b|²) of a color c and medians a and b is linear in c; all numbers are
        # whole and below 2²⁴, exact in float32
        a, b = (twice_the_median(colors, part) for part in (lesion, surroundings))
        difference = cv2.transform(as_float, np.float32([[*(4 * (b - a)), a @ a - b @ b]]))
        moved = near & ((difference < 0) | (difference == 0) & (lesion > 0)) | inner
        moved = cv2.morphologyEx(moved, cv2.MORPH_OPEN, SQUARE)
        if (moved == lesion).all():
            break
        lesion = moved
    snapped = np.zeros(segmentation.shape, bool)
    snapped[box] = lesion > 0
    return snapped


def grabcut(segmentation: np.ndarray, image: np.ndarray, reach: float = 50,
            core: float = 4) -> np.ndarray:
    """The segmentation after GrabCut (Rother et al. 2004), GRABCUT_ROUNDS rounds: mixtures of
    Gaussians learn the colors of both sides, and a graph cut separates them along edges. What lies
    deeper than `core` stays lesion, and nothing beyond the `reach` becomes lesion."""
    if segmentation.all() or not segmentation.any():
        return segmentation
    scale = scale_of(segmentation)
    marks = np.full(segmentation.shape, cv2.GC_BGD, np.uint8)
    lesion = segmentation.astype(np.uint8)
    marks[dilate(lesion, reach * scale) > 0] = cv2.GC_PR_BGD
    marks[segmentation] = cv2.GC_PR_FGD
    marks[erode(lesion, core * scale) > 0] = cv2.GC_FGD
    cv2.setRNGSeed(0)  # the mixtures begin with a random clustering
    try:
        cv2.grabCut(blurred_lab(image, scale), marks, None, np.zeros((1, 65)), np.zeros((1, 65)),
                    GRABCUT_ROUNDS, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # too few pixels on one side for its mixture
        return segmentation
    return (marks == cv2.GC_FGD) | (marks == cv2.GC_PR_FGD)


def smooth_and_dilate(segmentation: np.ndarray, margin: float) -> np.ndarray:
    """The segmentation as an expert draws around it: bays narrower than twice CLOSING_RADIUS
    closed, holes filled, smoothed (Gaussian of σ SMOOTHING), and dilated by `margin` px."""
    if not segmentation.any():
        return segmentation
    scale = scale_of(segmentation)
    box = bounding_box(segmentation, math.ceil(margin * scale) + 2)
    # as if the image continued beyond its border, as far as that matters within it
    border = math.ceil((CLOSING_RADIUS + 4 * SMOOTHING + margin) * scale) + 3
    padded = cv2.copyMakeBorder(segmentation[box].astype(np.uint8), *[border] * 4,
                                cv2.BORDER_REPLICATE)
    closed = erode(dilate(padded, CLOSING_RADIUS * scale), CLOSING_RADIUS * scale)
    smooth = cv2.GaussianBlur(fill_holes(closed).astype(np.float32), (0, 0), SMOOTHING * scale)
    dilated = dilate((smooth > 0.5).astype(np.uint8), margin * scale)
    drawn = np.zeros(segmentation.shape, bool)
    drawn[box] = dilated[border:-border, border:-border] > 0
    return drawn


def fill_holes(segmentation: np.ndarray) -> np.ndarray:
    """A segmentation H×W uint8, as bool, with the background that no path of pixels side by side
    joins to the border."""
    padded = cv2.copyMakeBorder(segmentation, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    cv2.floodFill(padded, None, (0, 0), 2, flags=4)
    return padded[1:-1, 1:-1] != 2


def bounding_box(segmentation: np.ndarray, margin: int) -> tuple[slice, slice]:
    """Rows and columns of a segmentation that is not empty, and `margin` px around it."""
    places = (np.flatnonzero(segmentation.any(axis)) for axis in (1, 0))
    return tuple(slice(max(0, found[0] - margin), found[-1] + 1 + margin) for found in places)


def twice_the_median(colors: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Of each channel of colors H×W×3 uint8 where `part` H×W uint8 is not 0: the sum of the two
    values in the middle, 3 integers."""
    sums = []
    for channel in range(3):
        counts = cv2.calcHist([colors], [channel], part, [256], (0, 256)).ravel()
        up_to = np.cumsum(counts, dtype=np.int64)
        middle = (up_to[-1] - 1) // 2, up_to[-1] // 2
        sums.append(np.searchsorted(up_to, middle, 'right').sum())
    return np.array(sums)


def dilate(segmentation: np.ndarray, radius: float) -> np.ndarray:
    """A segmentation H×W uint8 of 0 and 1 with all that is within a disc around its pixels."""
    return by_rows_of_disc(segmentation, radius, cv2.dilate, np.maximum)


def erode(segmentation: np.ndarray, radius: float) -> np.ndarray:
    """The pixels of a segmentation H×W uint8 of 0 and 1 around which a disc is in it, too; beyond
    its border everything is."""
    return by_rows_of_disc(segmentation, radius, cv2.erode, np.minimum)


def by_rows_of_disc(segmentation: np.ndarray, radius: float,
                    along_rows: Callable[[np.ndarray, np.ndarray], np.ndarray],
                    combine: np.ufunc) -> np.ndarray:
    """What OpenCV computes with `disc`, one row of the disc after the other: with a rectangle its
    time does not grow with the size."""
    widths = disc(radius).sum(1).tolist()
    in_rows = {width: along_rows(segmentation, np.ones((1, width), np.uint8))
               for width in set(widths)}
    height, half = len(segmentation), len(widths) // 2
    result = in_rows[widths[half]].copy()
    for shift in range(1, min(half + 1, height)):
        other = in_rows[widths[half + shift]]
        combine(result[:-shift], other[shift:], out=result[:-shift])
        combine(result[shift:], other[:-shift], out=result[shift:])
    return result


def disc(radius: float) -> np.ndarray:
    """A round structuring element, uint8 of an odd side of at least 3."""
    side = 2 * max(1, round(radius)) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))


def blurred_lab(image: np.ndarray, scale: float) -> np.ndarray:
    """The image in CIELAB, H×W×3 uint8, slightly blurred."""
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, 2)
    return cv2.cvtColor(cv2.GaussianBlur(image, (0, 0), BLUR * scale), cv2.COLOR_RGB2LAB)


def scale_of(segmentation: np.ndarray) -> float:
    """What lengths are multiplied by for a segmentation of this size."""
    return max(segmentation.shape) / REFERENCE_SIZE
