"""Whether soft masks can be what somebody wants: they are not where they look inverted, are nearly
empty, or are alike for all images. Source: ours; of our weights in model/ on their test
images (LGG, ISIC, BUSI; 30 of either folder) the mean is 0.12 to 0.33 and the correlation 0.09 to
0.59; of the labels it is 0.15 to 0.60."""
from collections.abc import Sequence

import cv2
import numpy as np

SIDE = 32  # px, at which masks are compared
INVERTED_ABOVE, EMPTY_BELOW = 0.7, 0.002  # mean soft mask
ALIKE_ABOVE = 0.9  # mean correlation over pairs of images
LEAST_EMPTY, LEAST_ALIKE = 2, 5  # images that it takes to say so


def small_mask(mask: np.ndarray) -> np.ndarray:
    """A soft mask H×W, uint8 or float in [0, 1], as SIDE×SIDE float32 in [0, 1] of equal mean."""
    scale = 255 if mask.dtype == np.uint8 else 1
    return cv2.resize(mask.astype(np.float32) / scale, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def mean_correlation(masks: np.ndarray) -> float:
    """Mean Pearson correlation over all pairs of masks N×P; those of one gray level count as equal
    to each other, and as unrelated to others."""
    centered = masks - masks.mean(1, keepdims=True)
    length = np.linalg.norm(centered, axis=1)
    is_flat = length < 1e-4
    total = (centered[~is_flat] / length[~is_flat, None]).sum(0)
    flat, other = int(is_flat.sum()), int((~is_flat).sum())
    pairs = float(total @ total) - other + flat * (flat - 1)
    return pairs / (len(masks) * (len(masks) - 1))


def mask_warnings(small_masks: Sequence[np.ndarray], whose: str = 'soft masks') -> list[str]:
    """What is wrong with soft masks, each of another image and from `small_mask`, and its likely
    cause: a line each, none if they are plausible."""
    if not small_masks:
        return []
    masks = np.stack(small_masks).reshape(len(small_masks), -1)
    count, mean = len(masks), float(masks.mean())
    subject = f'warning: the {whose} of {count} image{"s" * (count > 1)}'
    if mean < EMPTY_BELOW and count >= LEAST_EMPTY:
        return [f'{subject} are nearly empty (mean {mean:.4f}): right if none is diseased; else '
                'the network was trained too briefly, what it learned from was empty, or these '
                'images are unlike those it was trained on']
    lines = []
    if mean > INVERTED_ABOVE:
        lines.append(f'{subject} look inverted (mean {mean:.2f}): trainA has to hold the disease '
                     'images and trainB the normal ones; if so, the network was trained too '
                     'briefly, or something around the lesion distinguishes the two folders, see '
                     'the image grids in img0/')
    if count >= LEAST_ALIKE and (correlation := mean_correlation(masks)) > ALIKE_ABOVE:
        lines.append(f'{subject} are all alike (mean correlation {correlation:.2f}): the network '
                     'was trained too briefly, or something at a fixed place (frame, text, '
                     'vignette) distinguishes trainA from trainB, see the image grids in img0/')
    return lines
