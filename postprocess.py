"""From a soft mask to a segmentation: arrays in, arrays out.

Soft masks are H×W, uint8, 255 = lesion, as they are written to disk; images H×W×3 uint8;
segmentations H×W bool. The published rules are made for pictures of 256 px: watershed and CRF
work on at most that size and their result is enlarged.
"""
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import cv2
import numpy as np
from PIL import Image
from scipy import ndimage, sparse

from settings import Lesions
from utils import cores

RULES = ('threshold', 'otsu', 'watershed', 'crf', 'clean', 'fit')
LOOK_AT_THE_PICTURE = ('crf', 'fit')
PUBLISHED_SIZE = 256  # px, the pictures that the sizes in these rules were made for
EXPONENTS = tuple(range(1, 9))  # published: the CRF's background exponents that val chooses from


def to_bytes(soft_mask: np.ndarray) -> np.ndarray:
    """A soft mask H×W in [0, 1] as uint8, 255 = lesion; what is no number is no lesion."""
    return np.rint(np.nan_to_num(np.clip(soft_mask, 0, 1)) * 255).astype(np.uint8)


def segment(mask: np.ndarray, rule: str, image: np.ndarray | None = None,
            exponent: float = 1, lesions: Lesions = Lesions()) -> np.ndarray:
    """Segmentation of a soft mask by one of RULES. `image` serves those that look at the picture,
    `exponent` the CRF, `lesions` clean and fit.

    Where a rule has nothing to go by: a mask of one grey level has no two classes, so otsu,
    watershed, clean and fit find no lesion; threshold and crf follow the level (a full mask stays full,
    an empty one empty).
    """
    if rule == 'threshold':
        return threshold(mask)
    if rule == 'otsu':
        return otsu(mask)
    if rule == 'watershed':
        return watershed(mask)
    if rule == 'crf':
        return crf_segmentations(mask, image, (exponent,))[exponent]
    if rule in ('clean', 'fit'):  # as targets are made of masks
        small = shrink(image) if rule == 'fit' else None
        found = teaching_target(shrink(mask), small, lesions, fit=rule == 'fit')
        return enlarge(found.astype(np.uint8) * 255, mask.shape) > 127
    raise ValueError(f'{rule}: not one of {", ".join(RULES)}')


def segment_by_all(masks: list[np.ndarray], image: np.ndarray,
                   tries: list[list[tuple[str, tuple]]],
                   lesions: Lesions = Lesions()) -> list[dict]:
    """Of each mask its segmentations by (rule, exponent); `tries` are for each mask the rules to
    try, with exponents for the CRF. One CRF serves all masks, since it belongs to the image."""
    crf, made = None, []
    for mask, rules in zip(masks, tries):
        made.append({})
        for rule, exponents in rules:
            if rule == 'crf':
                crf = crf or DenseCRF(shrink(image))
                made[-1] |= {(rule, exponent): segmentation for exponent, segmentation
                             in crf_segmentations(mask, image, exponents, crf).items()}
            else:
                made[-1][rule, None] = segment(mask, rule, image, lesions=lesions)
    return made


def worker_pool() -> ProcessPoolExecutor:
    """A process a core for what threads cannot share out: the CRF's matrix products hold Python's
    lock. They are started anew (spawn), since a copy of a process that runs threads may hang."""
    return ProcessPoolExecutor(cores(), get_context('spawn'), cv2.setNumThreads, (1,))


def threshold(mask: np.ndarray) -> np.ndarray:
    """Above one half is lesion."""
    return mask > 127


def otsu(mask: np.ndarray) -> np.ndarray:
    """Above Otsu's threshold of the mask's grey values is lesion; nothing if there is one value."""
    if mask.min() == mask.max():
        return np.zeros(mask.shape, bool)
    level, _ = cv2.threshold(mask, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return mask > level


def watershed(mask: np.ndarray) -> np.ndarray:
    """The published marker-controlled watershed on the mask.

    Otsu; opening 3×3 twice; what a dilation 7×7 three times leaves out is surely background; where
    the distance to the background is above 0.7 of its maximum is surely lesion; of the basins
    grown from these markers all but the background are lesion. Nothing is lesion where the
    opening leaves nothing. Where the dilation covers the picture there is no background to grow,
    and everything is lesion.
    """
    small = shrink(mask)
    opened = cv2.morphologyEx(otsu(small).astype(np.uint8), cv2.MORPH_OPEN,
                              np.ones((3, 3), np.uint8), iterations=2)
    if not opened.any():
        return np.zeros(mask.shape, bool)
    possible = cv2.dilate(opened, np.ones((7, 7), np.uint8), iterations=3)
    distance = cv2.distanceTransform(opened, cv2.DIST_L2, 5)
    sure = (distance > 0.7 * distance.max()).astype(np.uint8)
    _, markers = cv2.connectedComponents(sure)
    markers += 1  # 1 is the background, lesions count from 2
    markers[(possible > 0) & (sure == 0)] = 0  # to be decided
    basins = cv2.watershed(cv2.cvtColor(small, cv2.COLOR_GRAY2BGR), markers)
    # OpenCV draws the lines between basins as −1, and always one around the picture
    lesion = (basins > 1).astype(np.uint8)
    lesion[[0, -1]], lesion[:, [0, -1]] = lesion[[1, -2]], lesion[:, [1, -2]]
    return enlarge(lesion * 255, mask.shape) > 127


def clear_corners(segmentation: np.ndarray) -> np.ndarray:
    """The segmentation without the four corner triangles, of legs 80/256 of height and width.

    Published for the second generation on ISIC, whose pictures have dark corners.
    """
    height, width = segmentation.shape
    leg = 80 / PUBLISHED_SIZE
    rows = (np.arange(height)[:, None] + 0.5) / height
    columns = (np.arange(width)[None] + 0.5) / width
    in_corner = np.minimum(rows, 1 - rows) + np.minimum(columns, 1 - columns) < leg
    return segmentation & ~in_corner


def clear_background(soft_mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The soft mask H×W set to 0 where all channels of the image H×W×C are at its minimum.

    Published for the second generation: black background holds no lesion.
    """
    return np.where((image == image.min()).all(axis=-1), 0, soft_mask)


def shrink(picture: np.ndarray) -> np.ndarray:
    """A uint8 picture H×W or H×W×3, bicubically made smaller where a side is above PUBLISHED_SIZE."""
    factor = PUBLISHED_SIZE / max(picture.shape[:2])
    if factor >= 1:
        return picture
    height, width = (max(1, round(side * factor)) for side in picture.shape[:2])
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def enlarge(picture: np.ndarray, shape: tuple) -> np.ndarray:
    """A uint8 picture H×W bilinearly as large as `shape`, (height, width)."""
    if picture.shape == tuple(shape):
        return picture
    return np.asarray(Image.fromarray(picture).resize(shape[::-1], Image.Resampling.BILINEAR))


CORE = 6  # px of a picture of 256


def fit_to_picture(segmentation: np.ndarray, image: np.ndarray, lean: float = 1, reach: float = 16,
                   core: float = CORE) -> np.ndarray:
    """The segmentation with its outline moved to where the picture's colours change.

    Two means in a band: within `reach` of the segmentation every pixel goes to the side, lesion or
    surroundings, whose median colour (CIELAB, slightly blurred) is nearer; the medians are taken
    anew until nothing changes, ten times at most. With a `lean` above 1 a pixel is lesion while it
    is less than that many times as far from the lesion's colour.
    What lies deeper than `core` stays lesion, and nothing beyond the reach becomes it. Both in px
    of a picture of 256. `image` H×W×3 or H×W uint8, as large as the segmentation.
    """
    if not segmentation.any():
        return segmentation
    scale = max(segmentation.shape) / PUBLISHED_SIZE
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, 2)
    blurred = cv2.GaussianBlur(image, (0, 0), 1.5 * scale)
    colours = cv2.cvtColor(blurred, cv2.COLOR_RGB2LAB).astype(np.float32)
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


def deeper_than(depth: float, segmentation: np.ndarray) -> np.ndarray:
    """The pixels that lie deeper than `depth`, px of a picture of 256, in a segmentation H×W."""
    scale = max(segmentation.shape) / PUBLISHED_SIZE
    return cv2.erode(segmentation.astype(np.uint8), disc(depth * scale)) > 0


def disc(radius: float) -> np.ndarray:
    """A round structuring element."""
    side = 2 * max(1, round(radius)) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))


# ----------------------------------------------------------------------- cleaning teacher masks


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


def teaching_target(soft_mask: np.ndarray, image: np.ndarray | None, lesions: Lesions,
                    fit: bool) -> np.ndarray:
    """A soft mask H×W uint8 as a target to learn from: Otsu, cleaned, and with `fit` its outline
    moved to where the picture (H×W×3 uint8) changes, and cleaned again."""
    segmentation = clean(otsu(soft_mask), lesions.component)
    if not fit:
        return segmentation
    return clean(fit_to_picture(segmentation, image, lesions.lean), lesions.component)


# ------------------------------------------------------------------------------------ dense CRF


class PermutohedralLattice:
    """Gaussian filtering among n points in d dimensions (Adams et al. 2010), by sparse matrices.

    `filter` takes n×k values v and gives about Σ_j exp(−|f_i − f_j|²/2) v_j up to a constant
    factor: each point spreads its value over the d + 1 corners of the simplex it lies in (splat),
    the corners are blurred along each of the d + 1 directions of the lattice, and the point
    collects what its corners hold (slice, the transpose of splat).
    """

    def __init__(self, features: np.ndarray):
        """`features` n×d, in units of the Gaussian's standard deviation."""
        points, dims = features.shape
        # onto the plane Σ x = 0 in d + 1 dimensions, so that the blur has variance 1
        axes = np.arange(1, dims + 1)
        spread = np.sqrt(2 / 3) * (dims + 1) / np.sqrt(axes * (axes + 1))
        basis = np.tril(np.ones((dims, dims + 1))).T.copy()
        basis[axes, axes - 1] = -axes
        # (einsum: threads of a matrix library would only get into each other's way here)
        elevated = np.einsum('nd,ed->ne', features * spread, basis.astype(np.float32))

        # the nearest lattice point whose coordinates are multiples of d + 1 …
        whole = np.rint(elevated / (dims + 1)).astype(np.int64)
        origin = whole * (dims + 1)
        excess = whole.sum(1, keepdims=True)
        # … and the order of the differences, which tells the simplex around the point
        difference = elevated - origin
        order = np.argsort(-difference, axis=1, kind='stable')
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.arange(dims + 1)[None], axis=1)
        rank += excess
        wrapped = (rank < 0).astype(np.int64) - (rank > dims)
        rank += wrapped * (dims + 1)
        origin += wrapped * (dims + 1)

        # barycentric weights of the simplex's d + 1 corners
        place = dims - rank
        difference = (elevated - origin) / (dims + 1)
        weights = np.zeros((points, dims + 2))
        rows = np.arange(points)[:, None]
        weights[rows, place] += difference
        weights[rows, place + 1] -= difference
        weights[:, 0] += 1 + weights[:, dims + 1]

        # a corner's coordinates as one number; room for steps of the blur keeps it unambiguous
        low, high = origin.min(0) - 2 * (dims + 1), origin.max(0) + 2 * (dims + 1)
        strides = np.cumprod([1, *(high - low + 1)[:dims - 1]])

        def code(coordinates):  # the last one follows from the others: they sum to 0
            return (coordinates[..., :dims] - low[:dims]) @ strides

        base = code(origin)
        corner_codes = np.empty((points, dims + 1), np.int64)
        for corner in range(dims + 1):
            step = np.where(rank[:, :dims] <= dims - corner, corner, corner - (dims + 1))
            corner_codes[:, corner] = base + step @ strides
        codes, numbers = np.unique(corner_codes, return_inverse=True)

        self.slice = sparse.csr_matrix(
            (weights[:, :dims + 1].astype(np.float32).ravel(), numbers.ravel(),
             np.arange(0, points * (dims + 1) + 1, dims + 1)), shape=(points, len(codes)))
        self.splat = self.slice.T.tocsr()
        self.blurs = [self._blur(codes, 1, axis, dims, strides) for axis in range(dims + 1)]
        self.factor = np.float32(1 / (1 + 2.0 ** -dims))

    @staticmethod
    def _blur(codes, reach, axis, dims, strides):
        """½ v(p − s) + v(p) + ½ v(p + s), s the lattice's step along an axis."""
        step = np.full(dims + 1, -1)
        step[axis] = dims
        offset = step[:dims] @ strides
        blur = sparse.identity(len(codes), np.float32, 'csr')
        for sign in (-1, 1):
            found = np.searchsorted(codes, codes + sign * offset).clip(max=len(codes) - 1)
            there = np.flatnonzero(codes[found] == codes + sign * offset)
            blur = blur + sparse.csr_matrix(
                (np.full(len(there), 0.5, np.float32), (there, found[there])), blur.shape)
        return blur

    def filter(self, values: np.ndarray) -> np.ndarray:
        values = self.splat @ values
        for blur in self.blurs:
            values = blur @ values
        return self.slice @ values * self.factor


class DenseCRF:
    """Fully connected two-label CRF over one picture (Krähenbühl and Koltun 2011).

    Kernels as published: Gaussian σxy 3 px, weight 3; bilateral σxy 80 px, σrgb 13, weight 10;
    each normalised symmetrically. The lattices belong to the picture, so that one object serves
    any number of masks. In a picture of one colour, where no edge holds it, the larger label wins.
    """

    GAUSSIAN_SIGMA, GAUSSIAN_WEIGHT = 3, 3
    BILATERAL_SIGMA, COLOUR_SIGMA, BILATERAL_WEIGHT = 80, 13, 10
    STEPS = 10

    def __init__(self, image: np.ndarray):
        """`image` H×W×3 uint8."""
        height, width = image.shape[:2]
        rows, columns = np.mgrid[:height, :width].reshape(2, -1).astype(np.float32)
        places = np.stack([columns, rows], 1)
        colours = image.reshape(-1, 3).astype(np.float32)
        self.kernels = []
        for weight, features in (
                (self.GAUSSIAN_WEIGHT, places / self.GAUSSIAN_SIGMA),
                (self.BILATERAL_WEIGHT, np.hstack([places / self.BILATERAL_SIGMA,
                                                   colours / self.COLOUR_SIGMA]))):
            lattice = PermutohedralLattice(features)
            row_sums = lattice.filter(np.ones((height * width, 1), np.float32))
            self.kernels.append((weight, lattice, 1 / np.sqrt(row_sums + 1e-20)))

    def infer(self, soft_mask: np.ndarray, exponents=(1,)) -> np.ndarray:
        """Lesion probabilities T×H×W after STEPS mean-field steps, one a background exponent t.

        `soft_mask` H×W in [0, 1] scores the lesion, (1 − mask)^t the background.
        """
        lesion = np.asarray(soft_mask, np.float32).reshape(-1, 1)
        background = (1 - lesion) ** np.asarray(exponents, np.float32)
        share = np.clip(lesion / np.maximum(lesion + background, 1e-20), 1e-5, 1)
        other = np.clip(background / np.maximum(lesion + background, 1e-20), 1e-5, 1)
        evidence = np.log(share) - np.log(other)  # two labels: one log-odds says it all

        # Potts: a label gains weight · (kernel · its own probability); the difference of the two
        # labels' gains is linear in 2·q − 1
        probability = 1 / (1 + np.exp(-evidence))
        for _ in range(self.STEPS):
            balance, odds = 2 * probability - 1, evidence
            for weight, lattice, norm in self.kernels:
                odds = odds + weight * norm * lattice.filter(norm * balance)
            probability = 1 / (1 + np.exp(-odds))
        return probability.T.reshape(-1, *soft_mask.shape)


def crf_segmentations(mask: np.ndarray, image: np.ndarray, exponents=EXPONENTS,
                      crf: DenseCRF | None = None) -> dict:
    """By background exponent: where the CRF's lesion probability is above one half.

    `crf` may be given where it was made of `shrink(image)` before.
    """
    crf = crf or DenseCRF(shrink(image))
    small = shrink(mask)
    return {exponent: enlarge(to_bytes(probability), mask.shape) > 127
            for exponent, probability in zip(exponents, crf.infer(small / 255, exponents))}
