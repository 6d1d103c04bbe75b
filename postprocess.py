"""From a soft mask to a segmentation: arrays in, arrays out."""
import cv2
import numpy as np


def to_bytes(soft_mask: np.ndarray) -> np.ndarray:
    """A soft mask H×W in [0, 1] as uint8, 255 = lesion."""
    return np.rint(np.clip(soft_mask, 0, 1) * 255).astype(np.uint8)


def otsu(mask: np.ndarray) -> np.ndarray:
    """Boolean segmentation of a uint8 mask H×W by Otsu's threshold of its grey values.

    A mask of one grey level has no two classes to part: nothing is lesion.
    """
    if mask.min() == mask.max():
        return np.zeros(mask.shape, bool)
    threshold, _ = cv2.threshold(mask, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return mask > threshold


def clear_background(soft_mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The soft mask H×W set to 0 where all channels of the image H×W×C are at its minimum.

    Published for the second generation: black background holds no lesion.
    """
    return np.where((image == image.min()).all(axis=-1), 0, soft_mask)
