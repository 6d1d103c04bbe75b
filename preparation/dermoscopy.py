"""Artifacts in dermoscopy images (color patches, rulers, dark corners), and corners of plain skin.

Images are uint8 H×W×3, RGB. They are looked at in small; lengths below are px of such a small
image, shares are of its shorter side unless said otherwise. L, a, b are CIELAB's: L from 0 to 100,
a and b from -127 to 127. Thresholds are ours."""
import cv2
import numpy as np

from inference.refinement import disc

SIZE = 256  # px, the longer side of a small image

# dark corners
CORNER = 0.05  # side of the square that is looked at in each corner
DARK = 0.5  # of the skin's gray level; what is below is dark
BLACK = 0.2  # of the brightest gray level; what is below does not count as skin or lesion
DARK_CORNERS = 2  # so many make an artifact; a lesion may reach into one
# color patches
SKIN_HUE = (-35, 115)  # degrees from red to yellow in the a-b plane
OTHER_CHROMA, HIGH_CHROMA = 22, 54  # least chroma of a patch: of another hue, of the skin's hues
PATCH_LIGHT = 25  # least L of a patch; what is brown or black is none
PATCH_AREA = (0.006, 0.3)  # of the image
PATCH_SOLID = 0.85  # of its convex hull: patches are discs
# rulers
TICK_DEPTH = 9  # L, darker than both sides
TICK_THICK = 11  # px, more than a tick's thickness
TICK_LENGTH = (4, 45)  # px
TICK_SLENDER = 1.8  # length by thickness
TICK_STEP = (4, 40)  # px from tick to tick
TICK_ALIKE = 0.97  # least cosine of the angle between two ticks of a ruler
TICK_RATIO = 4  # between two lengths: every fifth or tenth tick is longer
TICK_EVEN = 0.06  # of the step, by which the next step may differ
TICKS = 4  # evenly spaced ones make a ruler
FEW_STROKES = 30  # near the rim; among more, as of hairs, some line up by chance
RULER_RIM = 0.3  # width of the rim where rulers lie
# plain corners
SHARES = (0.5, 0.4, 0.3, 0.25, 0.2)  # sides of the crops, the largest is tried first
MARGIN = 0.08  # of the crop's side, free of lesion around it
SKIN_SPREAD = 9  # largest distance of plain skin from the skin's color in Lab
RINGS = 6  # of the corners, outside the inscribed circle
SPOT = 0.003  # of the image
RIM = 0.08  # width of the rim whose color is taken as the skin's


def find_artifacts(image: np.ndarray) -> list[str]:
    """What a dermoscopy image of any size, uint8 H×W×3 RGB, shows besides skin and lesion: some of
    'ruler' and 'color patch'; empty if there is nothing. Of dark corners: see vignette.py."""
    small = shrink(image)
    tests = {'ruler': ruler_ticks, 'color patch': color_patches}
    return [name for name, test in tests.items() if np.any(test(small))]


def shrink(image: np.ndarray) -> np.ndarray:
    """The image at SIZE px on its longer side, at least 8 px on the other."""
    factor = SIZE / max(image.shape[:2])
    height, width = (max(8, round(side * factor)) for side in image.shape[:2])
    return cv2.resize(image, (width, height),
                      interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)


def to_lab(small: np.ndarray) -> np.ndarray:
    """H×W×3 float32: L, a, b."""
    return cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def skin_level(small: np.ndarray) -> float:
    """Gray level of the skin, 0 to 255: three quarters of what is not black are not brighter."""
    gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    return float(np.percentile(gray[gray >= BLACK * gray.max()], 75))


def has_dark_corners(small: np.ndarray) -> bool:
    """Whether the lens (vignette) left at least DARK_CORNERS corners dark."""
    gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    side = max(1, round(CORNER * min(gray.shape)))
    corners = (gray[rows, columns] for rows in (slice(side), slice(-side, None))
               for columns in (slice(side), slice(-side, None)))
    limit = DARK * skin_level(small)
    return sum(np.median(corner) < limit for corner in corners) >= DARK_CORNERS


def color_patches(small: np.ndarray) -> np.ndarray:
    """Where colored stickers lie at the rim: bool H×W."""
    L, a, b = np.moveaxis(to_lab(cv2.medianBlur(small, 5)), -1, 0)
    hue, chroma = np.degrees(np.arctan2(b, a)), np.hypot(a, b)
    skin_hue = (hue > SKIN_HUE[0]) & (hue < SKIN_HUE[1])
    colorful = (chroma > np.where(skin_hue, HIGH_CHROMA, OTHER_CHROMA)) & (L > PATCH_LIGHT)
    count, components, boxes, _ = cv2.connectedComponentsWithStats(
        cv2.morphologyEx(colorful.astype(np.uint8), cv2.MORPH_OPEN, disc(2)))
    is_patch = np.zeros(count, bool)
    height, width = L.shape
    for number, (left, top, across, down, area) in enumerate(boxes):
        at_rim = left <= 2 or top <= 2 or left + across >= width - 2 or top + down >= height - 2
        if number and at_rim and PATCH_AREA[0] <= area / L.size <= PATCH_AREA[1]:
            outlines, _ = cv2.findContours((components == number).astype(np.uint8),
                                           cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            is_patch[number] = area >= PATCH_SOLID * cv2.contourArea(cv2.convexHull(outlines[0]))
    return is_patch[components]


def find_strokes(small: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Short dark strokes: centers n×2 (x, y), unit vectors along them n×2, lengths n, px."""
    L = to_lab(small)[..., 0]
    deep = cv2.morphologyEx(L, cv2.MORPH_BLACKHAT, disc(TICK_THICK // 2)) > TICK_DEPTH
    _, components, boxes, _ = cv2.connectedComponentsWithStats(deep.astype(np.uint8))
    strokes = []
    for number, (left, top, across, down, area) in enumerate(boxes[1:], 1):
        if area < 5 or max(across, down) > TICK_LENGTH[1]:
            continue
        y, x = np.nonzero(components[top:top + down, left:left + across] == number)
        points = np.stack([x + left, y + top], 1).astype(float)
        spread, axes = np.linalg.eigh(np.cov(points.T) + np.eye(2) / 12)
        thickness, length = np.sqrt(12 * spread)
        if length >= max(TICK_LENGTH[0], TICK_SLENDER * thickness):
            strokes.append((*points.mean(0), *axes[:, 1], length))
    strokes = np.array(strokes).reshape(-1, 5)
    return strokes[:, :2], strokes[:, 2:4], strokes[:, 4]


def ruler_ticks(small: np.ndarray) -> np.ndarray:
    """The centers of aligned ticks, side by side at even steps near the rim: bool H×W. With every
    doubling of FEW_STROKES a ruler needs one tick more."""
    centers, along, lengths = find_strokes(small)
    height, width = small.shape[:2]
    to_rim = np.minimum(centers, (width, height) - centers)
    near_rim = (to_rim < RULER_RIM * min(height, width)).any(1)
    centers, along, lengths = centers[near_rim], along[near_rim], lengths[near_rim]
    ticks = np.zeros((height, width), bool)
    needed = TICKS + max(0, np.ceil(np.log2(max(1, len(lengths)) / FEW_STROKES)))
    for start, (x, y) in enumerate(along):
        ratio = lengths / lengths[start]
        alike = ((np.abs(along @ (x, y)) > TICK_ALIKE)
                 & (1 / TICK_RATIO < ratio) & (ratio < TICK_RATIO))
        across, up = ((centers[alike] - centers[start]) @ np.array([[y, x], [-x, y]])).T
        row = longest_row(across, up, lengths[alike])
        if len(row) >= needed:
            columns, rows = centers[alike][row].astype(int).T
            ticks[rows, columns] = True
    return ticks


def longest_row(across: np.ndarray, up: np.ndarray, lengths: np.ndarray) -> list[int]:
    """Numbers of the ticks in the longest row of even steps that begins with the one at (0, 0).
    `across` and `up`, px: where ticks are, across and along their direction."""

    def misses(last: int, step: float) -> np.ndarray:
        """By how much the distance of each tick from the last one differs from the step; infinite
        for those out of line. Long and short ticks are in line at one end."""
        aside = np.abs(up - up[last]) > 0.4 * step + np.abs(lengths - lengths[last]) / 2
        return np.where(aside, np.inf, np.abs(across - across[last] - step))

    first, longest = int(np.hypot(across, up).argmin()), []
    for second in np.flatnonzero((across > TICK_STEP[0]) & (across < TICK_STEP[1])):
        row, step = [first], across[second]
        while (missed := misses(row[-1], step)).min() < TICK_EVEN * step + 0.6:
            row.append(int(missed.argmin()))
            step = across[row[-1]] - across[row[-2]]
        longest = max(longest, row, key=len)
    return longest


def plain_corner(image: np.ndarray, label: np.ndarray | None,
                 rng: np.random.Generator) -> tuple[int, int, int] | None:
    """(top, left, side) in px of a square of plain skin in a corner that `rng` chooses, or None.
    `image` uint8 H×W×3 RGB; `label` bool H×W, the lesion; None: what differs in color from skin."""
    height, width = image.shape[:2]
    small = shrink(image)
    lesion = unlike_skin(small) if label is None else label
    artifacts = dark(small) | color_patches(small) | ruler_ticks(small)
    for share in SHARES:
        side = max(1, int(share * min(height, width)))
        for corner in rng.permutation(4):
            top, left = int(corner // 2) * (height - side), int(corner % 2) * (width - side)
            crop = (slice(top, top + side), slice(left, left + side))
            if not any_in(lesion, crop, (height, width), MARGIN * side) \
                    and not any_in(artifacts, crop, (height, width), 0):
                return top, left, side
    return None


def any_in(mask: np.ndarray, crop: tuple[slice, slice], shape: tuple[int, int], margin: float
           ) -> bool:
    """Whether a mask holds anything in a crop and a margin, both px of an image of `shape`."""
    window = []
    for part, length, mask_length in zip(crop, shape, mask.shape, strict=True):
        first, last = max(0, part.start - margin), min(length, part.stop + margin)
        window.append(slice(int(first * mask_length / length),
                            int(np.ceil(last * mask_length / length))))
    return bool(mask[tuple(window)].any())


def dark(small: np.ndarray) -> np.ndarray:
    """Where it is much darker than the skin, except for hairs: bool H×W."""
    gray = cv2.medianBlur(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), 9)
    return gray < DARK * skin_level(small)


def unlike_skin(small: np.ndarray) -> np.ndarray:
    """Where the color is not the skin's, perhaps a lesion: bool H×W. The skin's color is the median
    of the rim and, as light fades there, of each ring of the corners. Spots below SPOT are skin."""
    lab = cv2.GaussianBlur(to_lab(cv2.medianBlur(small, 9)), (0, 0), 2)
    height, width = lab.shape[:2]
    rim_width = max(1, round(RIM * min(height, width)))
    rim = np.ones((height, width), bool)
    rim[rim_width:-rim_width, rim_width:-rim_width] = False
    rim &= ~dark(small)
    skin = np.tile(np.median(lab[rim] if rim.any() else lab.reshape(-1, 3), 0), (height, width, 1))
    y, x = np.ogrid[-1:1:height * 1j, -1:1:width * 1j]
    rings = (np.hypot(x, y) - 1) * RINGS // 0.4143
    for ring in range(RINGS):
        if (rings == ring).any():
            skin[rings == ring] = np.median(lab[rings == ring], 0)
    difference = lab - skin
    difference[..., 0] = np.minimum(difference[..., 0], 0)  # what is brighter is no lesion
    unlike = (np.linalg.norm(difference, axis=-1) > SKIN_SPREAD).astype(np.uint8)
    _, components, boxes, _ = cv2.connectedComponentsWithStats(unlike)
    return (unlike > 0) & (boxes[:, 4] >= SPOT * unlike.size)[components]
