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

import outline
from crf import DenseCRF
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


def crf_segmentations(mask: np.ndarray, image: np.ndarray, exponents=EXPONENTS,
                      crf: DenseCRF | None = None) -> dict:
    """By background exponent: where the CRF's lesion probability is above one half.

    `crf` may be given where it was made of `shrink(image)` before.
    """
    crf = crf or DenseCRF(shrink(image))
    small = shrink(mask)
    return {exponent: enlarge(to_bytes(probability), mask.shape) > 127
            for exponent, probability in zip(exponents, crf.infer(small / 255, exponents))}


def teaching_target(soft_mask: np.ndarray, image: np.ndarray | None, lesions: Lesions,
                    fit: bool) -> np.ndarray:
    """A soft mask H×W uint8 as a target to learn from: Otsu, cleaned, and with `fit` its outline
    drawn on the picture, H×W×3 uint8 (`outline.draw`)."""
    segmentation = outline.clean(otsu(soft_mask), lesions.component)
    return outline.draw(segmentation, image, lesions) if fit else segmentation
