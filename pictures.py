"""Arrays as pictures that a person can look at. Pictures are uint8 H×W×3, RGB."""
import cv2
import numpy as np

from utils import to_unit_range

SEGMENTATION_COLOUR = (255, 220, 0)  # yellow
LABEL_COLOUR = (0, 200, 80)  # green


def from_tensor(image) -> np.ndarray:
    """A tensor 1×H×W or 3×H×W in [-1, 1] as a picture."""
    return from_array(image.detach().float().cpu().numpy())


def from_array(image: np.ndarray) -> np.ndarray:
    """An array 1×H×W or 3×H×W in [-1, 1] as a picture."""
    values = image.transpose(1, 2, 0)
    values = np.rint((values.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    return np.broadcast_to(values, (*values.shape[:2], 3)).copy()


def from_mask(mask: np.ndarray) -> np.ndarray:
    """A soft mask H×W in [0, 1] as a grey picture."""
    grey = np.rint(mask.clip(0, 1) * 255).astype(np.uint8)
    return np.stack([grey] * 3, -1)


def from_heatmap(heatmap: np.ndarray) -> np.ndarray:
    """A heatmap H×W of any range, stretched by its own: blue low, red high."""
    grey = np.rint(to_unit_range(heatmap) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)


def outline(picture: np.ndarray, mask: np.ndarray, colour: tuple) -> np.ndarray:
    """The picture with the outline of a boolean mask H×W drawn on it."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    thickness = max(1, round(min(mask.shape) / 200))
    return cv2.drawContours(picture.copy(), contours, -1, colour, thickness)


def outlines(picture: np.ndarray, segmentation: np.ndarray, label: np.ndarray | None) -> np.ndarray:
    """The picture with the outline of a segmentation and, under it, that of the label."""
    if label is not None:
        picture = outline(picture, label, LABEL_COLOUR)
    return outline(picture, segmentation, SEGMENTATION_COLOUR)


def sheet(rows: dict[str, list[np.ndarray]], size: int = 128) -> np.ndarray:
    """Rows of pictures under each other, each row with its name, every picture size × size."""
    lines = []
    for name, row in rows.items():
        label = np.full((size, 100, 3), 255, np.uint8)
        cv2.putText(label, name, (4, size // 2), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1,
                    cv2.LINE_AA)
        lines.append(np.hstack([label] + [
            cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA) for picture in row]))
    return np.vstack(lines)
