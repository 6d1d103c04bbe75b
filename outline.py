"""Where the outline of a lesion lies: cleaned, moved to where the picture changes, drawn smoothly.

Arrays in, arrays out: segmentations H×W bool, images uint8 H×W×3 RGB or H×W, as large as the
segmentation. All lengths are px of a picture of 256 px and scale with the segmentation.
"""
import math

import cv2
import numpy as np
from scipy import ndimage

from settings import Lesions

SIZE = 256  # px, the pictures that lengths here are for
CORE = 6  # px
BLUR = 1.5  # px, σ, before colours are compared


def draw(segmentation: np.ndarray, image: np.ndarray, lesions: Lesions) -> np.ndarray:
    """The segmentation with its outline where people draw those of such lesions."""
    drawn = clean(fit_to_picture(segmentation, image, lesions.lean), lesions.component)
    if lesions.cut:
        drawn = clean(cut_out(drawn, image), lesions.component)
    return with_margin(drawn, lesions.margin) if lesions.margin else drawn


def clean(segmentation: np.ndarray, component: str) -> np.ndarray:
    """A stage-1 segmentation as a target to learn from: opened 3×3, holes filled, and of its
    connected components those that `component` says.

    large    all of at least 0.3 of the largest
    central  dermoscopy, where the lesion is photographed in the middle: the one with the largest
             Σ exp(−d²/2σ²) over its pixels, d from the middle of the picture, σ a quarter of its
             side; size and place both count, so a spot in the very middle does not win over the
             lesion around it
    all      every component
    """
    # scipy's opening would eat into lesions at the border, so the border is taken to go on
    opened = cv2.morphologyEx(segmentation.astype(np.uint8), cv2.MORPH_OPEN,
                              np.ones((3, 3), np.uint8))
    filled = ndimage.binary_fill_holes(opened)
    count, labels = cv2.connectedComponents(filled.astype(np.uint8))
    if component == 'all' or count <= 2:
        return filled
    if component == 'large':
        sizes = np.bincount(labels.ravel(), minlength=count)
        sizes[0] = 0
        return (sizes >= 0.3 * sizes.max())[labels] & filled
    height, width = filled.shape
    rows = ((np.arange(height)[:, None] + 0.5) / height - 0.5) / 0.25
    columns = ((np.arange(width)[None] + 0.5) / width - 0.5) / 0.25
    closeness = np.exp(-(rows ** 2 + columns ** 2) / 2)
    scores = np.bincount(labels.ravel(), closeness.ravel(), minlength=count)
    return labels == 1 + scores[1:].argmax()


def fit_to_picture(segmentation: np.ndarray, image: np.ndarray, lean: float = 1, reach: float = 16,
                   core: float = CORE) -> np.ndarray:
    """The segmentation with its outline moved to where the picture's colours change.

    Two means in a band: within `reach` of the segmentation every pixel goes to the side, lesion or
    surroundings, whose median colour (CIELAB, slightly blurred) is nearer; the medians are taken
    anew until nothing changes, ten times at most. With a `lean` above 1 a pixel is lesion while it
    is less than that many times as far from the lesion's colour.
    What lies deeper than `core` stays lesion, and nothing beyond the reach becomes it.
    """
    if not segmentation.any():
        return segmentation
    scale = scale_of(segmentation)
    colours = colours_of(image, scale).astype(np.float32)
    near = cv2.dilate(segmentation.astype(np.uint8), disc(reach * scale)) > 0
    inner = deeper_than(core, segmentation)
    for _ in range(10):
        around = near & ~segmentation
        if not around.any() or not segmentation.any():
            break
        to_lesion, to_around = (np.square(colours - np.median(colours[part], 0)).sum(2)
                                for part in (segmentation, around))
        limit = lean ** 2 * to_around  # the distances are squared
        nearer = (to_lesion < limit) | (to_lesion == limit) & segmentation
        moved = cv2.morphologyEx((near & nearer | inner).astype(np.uint8),
                                 cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0
        if (moved == segmentation).all():
            break
        segmentation = moved
    return segmentation


def cut_out(segmentation: np.ndarray, image: np.ndarray, reach: float = 50,
            core: float = 4) -> np.ndarray:
    """The segmentation as a graph cut sees it: GrabCut (Rother et al. 2004), three rounds.

    Mixtures of Gaussians learn the colours of lesion and surroundings, and the cut looks for the outline
    that parts them along edges. What lies deeper than `core` stays lesion, and nothing beyond the
    `reach` becomes it.
    """
    scale = scale_of(segmentation)
    marks = np.full(segmentation.shape, cv2.GC_BGD, np.uint8)
    marks[cv2.dilate(segmentation.astype(np.uint8), disc(reach * scale)) > 0] = cv2.GC_PR_BGD
    marks[segmentation] = cv2.GC_PR_FGD
    marks[deeper_than(core, segmentation)] = cv2.GC_FGD
    if segmentation.all() or not segmentation.any():
        return segmentation
    cv2.setRNGSeed(0)  # the mixtures begin with a random clustering
    try:
        cv2.grabCut(colours_of(image, scale), marks, None, np.zeros((1, 65)), np.zeros((1, 65)), 3,
                    cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # too few pixels on one side for its mixture
        return segmentation
    return (marks == cv2.GC_FGD) | (marks == cv2.GC_PR_FGD)


BAY = 40  # px, radius
SMOOTH = 4  # px, σ


def with_margin(segmentation: np.ndarray, margin: float) -> np.ndarray:
    """The segmentation as a hand goes round it: across bays narrower than twice BAY, smoothly
    (Gaussian of σ SMOOTH), and `margin` px outside."""
    scale = scale_of(segmentation)
    reach = 2 * math.ceil(BAY * scale)
    # as if the picture went on behind its border
    wide = cv2.copyMakeBorder(segmentation.astype(np.uint8), *[reach] * 4, cv2.BORDER_REPLICATE)
    closed = cv2.morphologyEx(wide, cv2.MORPH_CLOSE, disc(BAY * scale))
    filled = ndimage.binary_fill_holes(closed).astype(np.float32)
    smooth = cv2.GaussianBlur(filled, (0, 0), SMOOTH * scale) > 0.5
    wider = cv2.dilate(smooth.astype(np.uint8), disc(margin * scale))
    return wider[reach:-reach, reach:-reach] > 0


def deeper_than(depth: float, segmentation: np.ndarray) -> np.ndarray:
    """The pixels that lie deeper than `depth` in a segmentation."""
    return cv2.erode(segmentation.astype(np.uint8), disc(depth * scale_of(segmentation))) > 0


def disc(radius: float) -> np.ndarray:
    """A round structuring element."""
    side = 2 * max(1, round(radius)) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))


def colours_of(image: np.ndarray, scale: float) -> np.ndarray:
    """CIELAB, 8 bits a channel, slightly blurred."""
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, 2)
    return cv2.cvtColor(cv2.GaussianBlur(image, (0, 0), BLUR * scale), cv2.COLOR_RGB2LAB)


def scale_of(segmentation: np.ndarray) -> float:
    """What lengths here are multiplied by."""
    return max(segmentation.shape) / SIZE
