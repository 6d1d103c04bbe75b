"""Soft masks by rules on gray levels, without learning: the baseline that needs no training. Images
are H×W×3 uint8."""
import cv2
import numpy as np

from inference.refinement import REFERENCE_SIZE, clean, erode, scale_of

RIM = 20  # px of a 256 px image inside the outline of the head that are no lesion; chosen on val


def dark_in_the_middle(image: np.ndarray) -> np.ndarray:
    """Soft mask H×W in [0, 1]: darkness (CIELAB lightness stretched from its 1st to its 99th
    percentile) times a centered Gaussian, σ a quarter of the side."""
    lightness = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)[..., 0].astype(float)
    low, high = np.percentile(lightness, (1, 99))
    rows, columns = (np.exp(-8 * np.linspace(-0.5, 0.5, side) ** 2) for side in lightness.shape)
    return np.clip((high - lightness) / (high - low + 1e-6), 0, 1) * np.outer(rows, columns)


def bright_in_the_head(image: np.ndarray) -> np.ndarray:
    """Soft mask H×W: how far a blurred FLAIR slice is above its median, inside the head."""
    blurred = cv2.GaussianBlur(image[..., 0], (0, 0), 3)
    head = clean(blurred > 20, 'large')
    padded = np.pad(head, 1)
    inside = erode(padded.astype(np.uint8), RIM * scale_of(padded))[1:-1, 1:-1] > 0
    if inside.sum() < 100:
        return np.zeros(blurred.shape)
    levels = blurred[inside].astype(float)
    return (blurred - np.median(levels)) / (4 * levels.std() + 1e-6) * inside


def dark_in_the_tissue(image: np.ndarray) -> np.ndarray:
    """Soft mask H×W in [0, 1]: `dark_in_the_middle` of a blurred ultrasound image, where there is
    echo at all."""
    scale = max(image.shape) / REFERENCE_SIZE
    tissue = cv2.GaussianBlur(image[..., 0], (0, 0), 8 * scale) > 20
    soft = dark_in_the_middle(cv2.GaussianBlur(image, (0, 0), 3 * scale))
    return soft * clean(tissue, 'large')


RULES = {'LGG': bright_in_the_head, 'BraTS': bright_in_the_head,
         'BUSI': dark_in_the_tissue}  # others: dark_in_the_middle


def soft_mask(image: np.ndarray, dataset_name: str) -> np.ndarray:
    """The soft mask H×W of an image H×W×3 uint8 by the rule of its data set."""
    return RULES.get(dataset_name, dark_in_the_middle)(image)
