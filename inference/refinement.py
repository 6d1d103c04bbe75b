"""Where the outline of a lesion lies: cleaned, moved to color edges, cut by GrabCut, smoothed.
Arrays in, arrays out: segmentations H×W bool, images uint8 H×W×3 RGB or H×W, as large as the
segmentation. All lengths are px of a 256 px image and scale with the segmentation.
Source: ours; every default was chosen on val (docs/ablations.md)."""
import math

import cv2
import numpy as np
from scipy import ndimage

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
    # scipy's opening would erode lesions at the border; OpenCV's continues the image there
    opened = cv2.morphologyEx(segmentation.astype(np.uint8), cv2.MORPH_OPEN, SQUARE)
    filled = ndimage.binary_fill_holes(opened)
    count, labels = cv2.connectedComponents(filled.astype(np.uint8))
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
    colors = blurred_lab(image, scale).astype(np.float32)
    near = cv2.dilate(segmentation.astype(np.uint8), disc(reach * scale)) > 0
    inner = erode(core, segmentation)
    for _ in range(MAX_ROUNDS):
        surroundings = near & ~segmentation
        if not surroundings.any() or not segmentation.any():
            break
        to_lesion, to_surroundings = (np.square(colors - np.median(colors[part], 0)).sum(2)
                                      for part in (segmentation, surroundings))
        nearer = (to_lesion < to_surroundings) | (to_lesion == to_surroundings) & segmentation
        moved = near & nearer | inner
        moved = cv2.morphologyEx(moved.astype(np.uint8), cv2.MORPH_OPEN, SQUARE) > 0
        if (moved == segmentation).all():
            break
        segmentation = moved
    return segmentation


def grabcut(segmentation: np.ndarray, image: np.ndarray, reach: float = 50,
            core: float = 4) -> np.ndarray:
    """The segmentation after GrabCut (Rother et al. 2004), GRABCUT_ROUNDS rounds: mixtures of
    Gaussians learn the colors of both sides, and a graph cut separates them along edges. What lies
    deeper than `core` stays lesion, and nothing beyond the `reach` becomes lesion."""
    if segmentation.all() or not segmentation.any():
        return segmentation
    scale = scale_of(segmentation)
    marks = np.full(segmentation.shape, cv2.GC_BGD, np.uint8)
    marks[cv2.dilate(segmentation.astype(np.uint8), disc(reach * scale)) > 0] = cv2.GC_PR_BGD
    marks[segmentation] = cv2.GC_PR_FGD
    marks[erode(core, segmentation)] = cv2.GC_FGD
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
    scale = scale_of(segmentation)
    border = 2 * math.ceil(CLOSING_RADIUS * scale)
    # as if the image continued beyond its border
    padded = cv2.copyMakeBorder(segmentation.astype(np.uint8), *[border] * 4, cv2.BORDER_REPLICATE)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, disc(CLOSING_RADIUS * scale))
    filled = ndimage.binary_fill_holes(closed).astype(np.float32)
    smooth = cv2.GaussianBlur(filled, (0, 0), SMOOTHING * scale) > 0.5
    dilated = cv2.dilate(smooth.astype(np.uint8), disc(margin * scale))
    return dilated[border:-border, border:-border] > 0


def erode(depth: float, segmentation: np.ndarray) -> np.ndarray:
    """The pixels that lie deeper than `depth` px in a segmentation."""
    return cv2.erode(segmentation.astype(np.uint8), disc(depth * scale_of(segmentation))) > 0


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
