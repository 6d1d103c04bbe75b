"""Arrays as images to look at: uint8 H×W×3, RGB."""
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from utils import printable, rescale_to_unit

SEGMENTATION_COLOR = (255, 220, 0)  # yellow
LABEL_COLOR = (0, 200, 255)  # light blue: on skin, too, and for those who see no green
MISSING_COLOR = (127, 127, 127)  # of a grid's cell without an image
OUTLINE_SHARE = 96  # an outline is 1/96 of the longer side: 2 px where that is shown at 192 px
GAP = 4  # px between the images of a grid
# Kinds of images by their names in grids, reports and docs; others are named as they are called
KIND_NAMES = {'mask': 'soft mask', 'teacher_mask': "teacher's soft mask",
              'pseudo_label': 'pseudo-label', 'cycle': 'A to B to A'}


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
    """A copy of the image with the outline of a bool mask H×W drawn on it, at least 2 px wide."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    thickness = max(2, round(max(mask.shape) / OUTLINE_SHARE))
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


def kind_name(kind: str) -> str:
    """A kind of image in words."""
    return KIND_NAMES.get(kind, kind.replace('_', ' '))


def all_kinds(cases: Iterable[Iterable[str]]) -> list[str]:
    """The kinds of all cases in display order: a new one comes behind its predecessor."""
    kinds = []
    for case in cases:
        index = 0
        for kind in case:
            if kind not in kinds:
                kinds.insert(index, kind)
            index = kinds.index(kind) + 1
    return kinds


def image_grid(columns: dict[str, dict[str, np.ndarray]], size: int = 128) -> np.ndarray:
    """Columns of images by kind, below their titles, of one line or more; each image uint8 H×W×3,
    fitted into size × size px. The rows are named by kind; a column without one is gray there."""
    font = _font(size // 10)
    kinds = all_kinds(columns.values())
    left = 2 * GAP + round(max(font.getlength(kind_name(kind)) for kind in kinds))
    titles = [title.split('\n') for title in columns]
    line_height = round(1.25 * font.size)
    top = GAP + line_height * max(map(len, titles))
    grid = Image.new('RGB', (left + len(titles) * (size + GAP), top + len(kinds) * (size + GAP)),
                     'white')
    draw = ImageDraw.Draw(grid)
    for row, kind in enumerate(kinds):
        draw.text((GAP, top + row * (size + GAP) + size / 2), kind_name(kind), 'black', font, 'lm')
    for column, (lines, images) in enumerate(zip(titles, columns.values(), strict=True)):
        x = left + column * (size + GAP)
        for number, line in enumerate(lines):
            text = shorten(printable(line), font, size - GAP)
            draw.text((x, GAP / 2 + number * line_height), text, 'black', font)
        for row, kind in enumerate(kinds):
            corner = x, top + row * (size + GAP)
            if kind in images:
                grid.paste(Image.fromarray(_fitted(images[kind], size)), corner)
            else:
                grid.paste(MISSING_COLOR, (*corner, x + size, corner[1] + size))
    return np.asarray(grid)


def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font of curves.png; Pillow's own has no letters beyond ASCII."""
    import matplotlib  # a tenth of a second
    return ImageFont.truetype(Path(matplotlib.get_data_path(), 'fonts/ttf/DejaVuSans.ttf'), size)


def shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, without its middle where it is wider than `width` px."""
    kept = len(text)
    shortened = text
    while font.getlength(shortened) > width and kept:
        kept -= 1
        shortened = f'{text[:kept // 2]}…{text[len(text) - (kept - kept // 2):]}'
    return shortened


def _fitted(image: np.ndarray, size: int) -> np.ndarray:
    """An image H×W×3 in the middle of size × size px, its sides in proportion."""
    factor = size / max(image.shape[:2])
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    cell = np.full((size, size, 3), 255, np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    cell[top:top + height, left:left + width] = cv2.resize(image, (width, height),
                                                           interpolation=cv2.INTER_AREA)
    return cell
