"""Arrays as images to look at: uint8 H×W×3, RGB."""
import cv2
import numpy as np
from torch import Tensor

from utils import rescale_to_unit

SEGMENTATION_COLOR = (255, 220, 0)  # yellow
LABEL_COLOR = (0, 200, 80)  # green
NAME_WIDTH = 120  # px at the left of an image grid, for the names of its rows


def from_tensor(image: Tensor) -> np.ndarray:
    """The image of a tensor 1×H×W or 3×H×W in [-1, 1]."""
    return from_array(image.detach().float().cpu().numpy())


def from_array(image: np.ndarray) -> np.ndarray:
    """The image of an array 1×H×W or 3×H×W in [-1, 1]."""
    values = np.rint((image.transpose(1, 2, 0).clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    return np.broadcast_to(values, (*values.shape[:2], 3)).copy()


def from_mask(mask: np.ndarray) -> np.ndarray:
    """A soft mask H×W in [0, 1], or a segmentation, as gray image."""
    return np.stack([np.rint(mask.clip(0, 1) * 255).astype(np.uint8)] * 3, -1)


def from_heatmap(heatmap: np.ndarray) -> np.ndarray:
    """A heatmap H×W of any range, rescaled to its own range: blue low, red high."""
    gray = np.rint(rescale_to_unit(heatmap) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(gray, cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)


def draw_outline(image: np.ndarray, mask: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """A copy of the image with the outline of a bool mask H×W drawn on it."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    thickness = max(1, round(min(mask.shape) / 200))
    return cv2.drawContours(image.copy(), contours, -1, color, thickness)


def overlay(image: np.ndarray, segmentation: np.ndarray, label: np.ndarray | None) -> np.ndarray:
    """The image with the outline of a segmentation H×W bool and, below it, that of the label."""
    if label is not None:
        image = draw_outline(image, label, LABEL_COLOR)
    return draw_outline(image, segmentation, SEGMENTATION_COLOR)


def error_map(segmentation: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Two bool masks H×W: what both hold is white, the segmentation alone and the label alone have
    the colors of their outlines."""
    image = np.zeros((*label.shape, 3), np.uint8)
    for where, color in ((segmentation & label, (255, 255, 255)),
                         (segmentation & ~label, SEGMENTATION_COLOR),
                         (label & ~segmentation, LABEL_COLOR)):
        image[where] = color
    return image


def image_grid(rows: dict[str, list[np.ndarray]], size: int = 128) -> np.ndarray:
    """Rows of images below each other, every row with its name, every image size × size px."""
    lines = []
    for name, images in rows.items():
        title = np.full((size, NAME_WIDTH, 3), 255, np.uint8)
        cv2.putText(title, name, (4, size // 2), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1,
                    cv2.LINE_AA)
        lines.append(np.hstack([title] + [
            cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in images]))
    return np.vstack(lines)
