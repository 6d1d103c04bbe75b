"""From a soft mask to a segmentation: arrays in, arrays out. Soft masks are H×W uint8, 255 =
lesion, as on disk; images H×W×3 uint8; segmentations H×W bool. The published rules are made for
images of 256 px: watershed and CRF work on at most that size, and their result is enlarged."""
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from threading import Thread

import cv2
import numpy as np
from PIL import Image

from config import Config
from inference import refinement
from inference.crf import DenseCRF
from runtime.threads import cpu_count

PUBLISHED_SIZE = 256  # px, the images that the sizes in these rules were made for
REFINING_RULES = ('color_edges', 'grabcut')  # see refinement.refine
PSEUDO_LABEL_RULES = ('clean', *REFINING_RULES)
EXPONENTS = tuple(range(1, 9))  # published: the CRF's background exponents that val chooses from


def to_bytes(soft_mask: np.ndarray) -> np.ndarray:
    """A soft mask H×W in [0, 1] as uint8, 255 = lesion; NaN is no lesion."""
    return np.rint(np.nan_to_num(np.clip(soft_mask, 0, 1)) * 255).astype(np.uint8)


def to_segmentation(mask: np.ndarray, rule: str, image: np.ndarray | None, exponent: float,
                    config: Config, pool: ProcessPoolExecutor | None = None) -> np.ndarray:
    """The segmentation H×W bool of a soft mask H×W uint8 in training, val, test and predict:
    `segment`, in another process if there is a `pool`, then clear corners with --clear_corners."""
    arguments = mask, rule, image, exponent, config.keep_components
    segmentation = pool.submit(segment, *arguments).result() if pool else segment(*arguments)
    return clear_corners(segmentation) if config.clear_corners else segmentation


def slices_with_lesion(highest: np.ndarray, threshold: float) -> np.ndarray:
    """Which slices of a volume hold a lesion, bool N, by the highest value of each one's soft mask,
    N in [0, 1] from one end to the other: those that reach `threshold` and are in a row with one
    that is nearer to the highest value of the volume than to the threshold (hysteresis over
    slices). Lesions reach over slices and are surest in their middle; what marks eyes or veins in
    a single slice is less sure. A threshold of 0 takes all."""
    above = highest >= threshold
    from scipy import ndimage  # here, since images need none
    rows, _ = ndimage.label(above)
    sure = above & (highest >= (threshold + highest.max(initial=0)) / 2)
    return above & np.isin(rows, rows[sure]) if threshold else above


def segment(mask: np.ndarray, rule: str, image: np.ndarray | None = None, exponent: float = 1,
            keep_components: str = 'large') -> np.ndarray:
    """The segmentation H×W bool of a soft mask by one of RULES; raises ValueError for any other,
    and where RULES_WITH_IMAGE have no image. `exponent` is the CRF's, `keep_components` that
    of PSEUDO_LABEL_RULES. In a mask of one gray level these, otsu and watershed find no lesion;
    threshold and crf follow the level (a full mask stays full, an empty one empty)."""
    if rule not in RULES:
        raise ValueError(f'{rule}: not one of {", ".join(RULES)}')
    if image is None and rule in RULES_WITH_IMAGE:
        raise ValueError(f'{rule}: this rule needs the image')
    return RULES[rule](mask, image, exponent, keep_components)


def segment_by_all(masks: list[np.ndarray], image: np.ndarray,
                   rules_of: list[list[tuple[str, tuple]]],
                   keep_components: str = 'large'
                   ) -> list[dict[tuple[str, float | None], np.ndarray]]:
    """The segmentations of several soft masks of one image: of each mask {(rule, exponent): H×W
    bool}, where the exponent is None for all rules but crf. `rules_of` holds for each mask (rule,
    exponents of the CRF). One CRF serves all masks, since it belongs to the image."""
    crf, segmentations = None, []
    for mask, rules in zip(masks, rules_of, strict=True):
        by_rule = {}
        for rule, exponents in rules:
            if rule == 'crf':
                crf = crf or DenseCRF(shrink(image))
                by_exponent = crf_segmentations(mask, image, exponents, crf)
                by_rule |= {(rule, exponent): by_exponent[exponent] for exponent in exponents}
            else:
                by_rule[rule, None] = segment(mask, rule, image, 1, keep_components)
        segmentations.append(by_rule)
    return segmentations


def worker_pool() -> ProcessPoolExecutor:
    """A process for each core, for work that threads cannot share: the CRF's matrix products hold
    Python's lock. Processes are spawned, since a fork of one that runs threads may hang."""
    return ProcessPoolExecutor(cpu_count(), get_context('spawn'), _start_worker)


def _start_worker() -> None:
    """One thread computes; another ends the process with its parent, however that ends."""
    def end_with_parent() -> None:
        parent_process().join()
        os._exit(1)
    cv2.setNumThreads(1)
    Thread(target=end_with_parent, daemon=True).start()


def pseudo_label(soft_mask: np.ndarray, image: np.ndarray | None, rule: str,
                 keep_components: str) -> np.ndarray:
    """The pseudo-label H×W bool of a soft mask H×W uint8 by one of PSEUDO_LABEL_RULES: Otsu,
    cleaned, and by all rules but `clean` its outline refined on the image H×W×3 uint8."""
    segmentation = refinement.clean(otsu(soft_mask), keep_components)
    if rule == 'clean' or not segmentation.any():
        return segmentation
    return refinement.refine(segmentation, image, rule, keep_components)


def threshold(mask: np.ndarray) -> np.ndarray:
    """Above one half is lesion."""
    return mask > 127


def otsu(mask: np.ndarray) -> np.ndarray:
    """Above Otsu's threshold of the mask's gray values is lesion; nothing if it has one value."""
    if mask.min() == mask.max():
        return np.zeros(mask.shape, bool)
    level, _ = cv2.threshold(mask, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return mask > level


def watershed(mask: np.ndarray) -> np.ndarray:
    """The published marker-controlled watershed on the mask. Otsu; opening 3×3 twice; what three
    dilations 7×7 leave out is certainly background; what is farther from the background than 0.7 of
    the maximum is certainly lesion; of the basins that grow from these markers all but the
    background are lesion. Nothing is where the opening leaves nothing, or an image is below 3 px;
    everything where the dilation covers the image, since there is no background to grow."""
    small = shrink(mask)
    opened = cv2.morphologyEx(otsu(small).astype(np.uint8), cv2.MORPH_OPEN,
                              np.ones((3, 3), np.uint8), iterations=2)
    if not opened.any() or min(small.shape) < 3:
        return np.zeros(mask.shape, bool)
    possible = cv2.dilate(opened, np.ones((7, 7), np.uint8), iterations=3)
    distance = cv2.distanceTransform(opened, cv2.DIST_L2, 5)
    certain = (distance > 0.7 * distance.max()).astype(np.uint8)
    _, markers = cv2.connectedComponents(certain)
    markers += 1  # 1 is the background, lesions count from 2
    markers[(possible > 0) & (certain == 0)] = 0  # to be decided
    basins = cv2.watershed(cv2.cvtColor(small, cv2.COLOR_GRAY2BGR), markers)
    # OpenCV draws the lines between basins as −1, and always one around the image
    lesion = (basins > 1).astype(np.uint8)
    lesion[[0, -1]], lesion[:, [0, -1]] = lesion[[1, -2]], lesion[:, [1, -2]]
    return resize_map(lesion * 255, mask.shape[::-1]) > 127


def crf_segmentations(mask: np.ndarray, image: np.ndarray, exponents: Sequence[float] = EXPONENTS,
                      crf: DenseCRF | None = None) -> dict[float, np.ndarray]:
    """By background exponent: where the CRF's lesion probability is above one half, H×W bool.
    `crf`, a DenseCRF of `shrink(image)`, spares building it again."""
    crf = crf or DenseCRF(shrink(image))
    probabilities = crf.infer(shrink(mask) / 255, exponents)
    return {exponent: resize_map(to_bytes(probability), mask.shape[::-1]) > 127
            for exponent, probability in zip(exponents, probabilities, strict=True)}


def _shrunk_pseudo_label(mask: np.ndarray, image: np.ndarray | None, rule: str,
                         keep_components: str) -> np.ndarray:
    """As `pseudo_label`, at PUBLISHED_SIZE at most, then enlarged."""
    image = None if image is None else shrink(image)
    label = pseudo_label(shrink(mask), image, rule, keep_components)
    return resize_map(label.astype(np.uint8) * 255, mask.shape[::-1]) > 127


# Every post-processing rule, as --postprocess names them: (soft mask H×W uint8, image or None,
# exponent of the CRF, keep_components) → H×W bool
RULES: dict[str, Callable[[np.ndarray, np.ndarray | None, float, str], np.ndarray]] = {
    'threshold': lambda mask, *_: threshold(mask),
    'otsu': lambda mask, *_: otsu(mask),
    'watershed': lambda mask, *_: watershed(mask),
    'crf': lambda mask, image, exponent, _: crf_segmentations(mask, image, (exponent,))[exponent],
    **{rule: lambda mask, image, _, keep_components, rule=rule:
       _shrunk_pseudo_label(mask, image, rule, keep_components) for rule in PSEUDO_LABEL_RULES},
}
RULES_WITH_IMAGE = ('crf', *REFINING_RULES)


def clear_corners(segmentation: np.ndarray) -> np.ndarray:
    """The segmentation without the four corner triangles, of legs 80/256 of height and width:
    published for the second generation on ISIC, whose images have dark corners."""
    height, width = segmentation.shape
    leg = 80 / PUBLISHED_SIZE
    rows = (np.arange(height)[:, None] + 0.5) / height
    columns = (np.arange(width)[None] + 0.5) / width
    in_corner = np.minimum(rows, 1 - rows) + np.minimum(columns, 1 - columns) < leg
    return segmentation & ~in_corner


def clear_background(soft_mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The soft mask H×W set to 0 where all channels of the image H×W×C are at its minimum:
    published for the second generation, since black background holds no lesion."""
    return np.where((image == image.min()).all(axis=-1), 0, soft_mask)


def shrink(image: np.ndarray) -> np.ndarray:
    """A uint8 image H×W or H×W×3, bicubically reduced where a side is above PUBLISHED_SIZE."""
    factor = PUBLISHED_SIZE / max(image.shape[:2])
    if factor >= 1:
        return image
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def resize_map(values: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """An array H×W, float or uint8, resized bilinearly to (width, height)."""
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))
