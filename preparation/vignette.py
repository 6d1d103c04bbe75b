"""The dark surround of dermoscopy images (vignette): where the lens shows skin, and the crop.

Images are uint8 H×W×3 RGB, as in dermoscopy.py, whose small images these lengths are shares of.
Thresholds are ours."""
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from inference.refinement import disc
from preparation.dermoscopy import SKIN_SPREAD, SPOT, dark, has_dark_corners, shrink, to_lab

SOFT_RIM = 0.015  # of the shorter side: the field of view fades over so much, which is cut off
RING = 0.1  # of the shorter side: width of the field's rim, whose color is taken as the skin's
HAIR = 4  # px of a small image, above half the thickness of hairs
STEP = 4  # px of a small image between two positions of a side of the crop
DARK_COST = 20  # px of skin that a crop has to gain for a px of darkness
GRAY = 2  # gray levels between the channels, on average, up to which an image counts as gray
DARK_CORNERS = 'dark corners'
MOST_DARK = 0.25  # of the crop, the square around a circle has 0.215; with more it cannot be used


class Crop(NamedTuple):
    """Part of an image, px, and the share of it that lies outside the field of view."""

    top: int
    left: int
    height: int
    width: int
    dark_share: float = 0.0

    @property
    def window(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        return (slice(self.top, self.top + self.height),
                slice(self.left, self.left + self.width))


def cropped(image: Image.Image, label: np.ndarray | None
            ) -> tuple[Image.Image, np.ndarray | None, Crop | None]:
    """Image and label within `bright_crop`, and this, None of an image without dark corners."""
    crop = bright_crop(np.asarray(image), label)
    if crop.window == Crop(0, 0, image.height, image.width).window:
        return image, label, crop if crop.dark_share else None
    top, left, height, width, _ = crop
    return (image.crop((left, top, left + width, top + height)),
            None if label is None else label[crop.window], crop)


def bright_crop(image: np.ndarray, label: np.ndarray | None = None) -> Crop:
    """The largest upright rectangle in the field of view that holds the whole lesion: that of
    `label`, bool H×W; None: what differs in color from the skin. A lesion that reaches into the
    corners takes some of the darkness along. An image without dark corners stays whole."""
    height, width = image.shape[:2]
    small = shrink(image)
    if not has_dark_corners(small):
        return Crop(0, 0, height, width)
    if label is not None:
        label = cv2.resize(label.astype(np.uint8) * 255, small.shape[1::-1],
                           interpolation=cv2.INTER_AREA if label.size > small[..., 0].size
                           else cv2.INTER_NEAREST) > 0
    view = field_of_view(small, label)
    lesion = lesion_in_view(small, view) if label is None else label
    rows, columns, dark_share = best_rectangle(view, lesion)
    # towards the outside of the lesion, and of the image at its sides
    (top, bottom), (left, right) = (
        (int(start * length / of_small), int(np.ceil(stop * length / of_small)))
        for (start, stop), length, of_small in ((rows, height, len(small)),
                                                (columns, width, small.shape[1])))
    return Crop(top, left, bottom - top, right - left, dark_share)


def show_dark_corners(pixels: np.ndarray) -> bool:
    """Whether an image of any size has dark corners and is not gray, as brain slices are."""
    small = shrink(pixels)
    return bool(np.ptp(small, 2).mean() > GRAY and has_dark_corners(small))


def field_of_view(small: np.ndarray, label: np.ndarray | None = None) -> np.ndarray:
    """Where a small image shows skin and lesion, bool H×W: the convex hull of its largest bright
    part, so that a dark lesion at the rim belongs to it, without a soft rim."""
    bright = ~dark(small)
    if label is not None:
        bright |= label
    bright = cv2.morphologyEx(bright.astype(np.uint8), cv2.MORPH_OPEN, disc(2))
    _, components, boxes, _ = cv2.connectedComponentsWithStats(bright)
    view = np.zeros_like(bright)
    if len(boxes) > 1:
        largest = (components == 1 + boxes[1:, 4].argmax()).astype(np.uint8)
        outlines, _ = cv2.findContours(largest, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.fillConvexPoly(view, cv2.convexHull(np.concatenate(outlines)), 1)
    return cv2.erode(view, disc(max(1, round(SOFT_RIM * min(view.shape))))) > 0


def lesion_in_view(small: np.ndarray, view: np.ndarray) -> np.ndarray:
    """The largest spot that differs in color from the rim of the field of view, with a margin in
    place of what it may hold of the rim: bool H×W."""
    lab = cv2.GaussianBlur(to_lab(cv2.medianBlur(small, 9)), (0, 0), 2)
    inner = cv2.erode(view.astype(np.uint8), disc(round(RING * min(view.shape) / 2)),
                      borderValue=0) > 0
    core = cv2.erode(view.astype(np.uint8), disc(round(RING * min(view.shape))),
                     borderValue=0) > 0
    ring = inner & ~core
    if not ring.any():
        return np.zeros_like(view)
    difference = lab - np.median(lab[ring], 0)
    difference[..., 0] = np.minimum(difference[..., 0], 0)  # what is brighter is no lesion
    unlike = (np.linalg.norm(difference, axis=-1) > SKIN_SPREAD) & inner
    unlike = cv2.morphologyEx(unlike.astype(np.uint8), cv2.MORPH_OPEN, disc(HAIR))
    _, components, boxes, _ = cv2.connectedComponentsWithStats(unlike)
    areas = boxes[1:, 4]
    if areas.max(initial=0) < SPOT * unlike.size:
        return np.zeros_like(view)
    lesion = (components == 1 + areas.argmax()).astype(np.uint8)
    return (cv2.dilate(lesion, disc(round(RING * min(view.shape) / 2))) > 0) & view


def best_rectangle(view: np.ndarray, lesion: np.ndarray
                   ) -> tuple[tuple[int, int], tuple[int, int], float]:
    """(start, stop) of rows and of columns, and the share outside the field of view, of the
    rectangle with the most px of `view` that holds all of `lesion`, both bool H×W; a px outside
    counts DARK_COST times."""
    height, width = view.shape
    value = np.where(view, 1.0, -DARK_COST)
    total = np.pad(value.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    ranges = []  # of rows, of columns: possible starts and stops
    for axis, length in enumerate((height, width)):
        places = np.append(np.arange(0, length, STEP), length)
        inside = np.flatnonzero(lesion.any(1 - axis))
        first, last = (inside[0], inside[-1] + 1) if inside.size else (length, 0)
        starts, stops = np.meshgrid(places[places <= first], places[places >= last], indexing='ij')
        keep = starts < stops
        ranges.append((starts[keep], stops[keep]))
    (tops, bottoms), (lefts, rights) = ranges
    strips = total[bottoms] - total[tops]  # rows between them, up to each column
    scores = strips[:, rights] - strips[:, lefts]
    row, column = np.unravel_index(scores.argmax(), scores.shape)
    rows, columns = (tops[row], bottoms[row]), (lefts[column], rights[column])
    return rows, columns, float(1 - view[slice(*rows), slice(*columns)].mean())


def note(notes: list[str], cropped: int, still_dark: int) -> None:
    """Lines of the summary: how many images were cropped, and how many show dark corners still."""
    if cropped:
        notes.append(f'{cropped} cropped to what lies inside their dark corners')
    if still_dark:
        notes.append(f'{still_dark} still {"show" if still_dark > 1 else "shows"} dark corners, '
                     'mostly since the lesion reaches into them; remove what looks wrong')
