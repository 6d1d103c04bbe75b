"""Dermoscopy pictures: whether one shows more than skin and lesion, and where its skin is plain.

Pictures are uint8 H×W×3, RGB. They are judged small; sizes below are px of such a small picture, shares
are of its shorter side unless said otherwise. L, a, b are CIELAB's: L from 0 to 100, a and b from -127.
"""
import cv2
import numpy as np

from outline import disc

SIZE = 256  # px, the longer side of a small picture

# dark corners
CORNER = 0.05  # side of the square that is looked at in each corner
DARK = 0.5  # of the skin's grey level; what is below is dark
DARK_CORNERS = 2  # so many of them; a lesion may reach into one

# colour patches
SKIN_HUE = (-35, 115)  # degrees from red to yellow in the a-b plane; no patch has to be told from skin outside
OTHER_CHROMA, HIGH_CHROMA = 22, 54  # the least chroma of a patch of another hue, and of the skin's hues
PATCH_LIGHT = 25  # L; brown and black are no patch
PATCH_AREA = (0.006, 0.3)  # of the picture
PATCH_SOLID = 0.85  # of its convex hull: patches are discs

# rulers
TICK_DEPTH = 9  # L, darker than both sides
TICK_THICK = 11  # px, more than a tick's thickness
TICK_LENGTH = (4, 45)  # px
TICK_SLENDER = 1.8  # length by thickness
TICK_STEP = (4, 40)  # px from tick to tick
TICK_ALIKE = 0.94  # cosine of the angle between two
TICK_RATIO = 4  # between two lengths: every fifth or tenth is longer
TICK_EVEN = 0.08  # of the step, that the next one may differ
TICKS = 4  # evenly spaced ones make a ruler
RULER_RIM = 0.3  # share of the side that is rim, where rulers lie

# plain corners
SHARES = (0.5, 0.4, 0.3, 0.25, 0.2)  # sides of the crops
MARGIN = 0.08  # of the crop's side, free of lesion around it
SKIN_SPREAD = 9  # distance in Lab from the skin's colour, of plain skin at most
RINGS = 6  # of the corners, outside the circle that fits in
SPOT = 0.003  # of the picture
RIM = 0.08  # width of the rim that tells the skin's colour


def find(picture: np.ndarray) -> list[str]:
    """What a dermoscopy picture shows besides skin and lesion: of 'dark corners', 'ruler' and
    'colour patch'; empty if nothing was found.

    `picture` uint8 H×W×3 RGB, of any size; it is judged at 256 px on the longer side.
    """
    small = shrink(picture)
    tests = {'dark corners': has_dark_corners, 'ruler': rulers, 'colour patch': patches}
    return [reason for reason, test in tests.items() if np.any(test(small))]


def shrink(picture):
    factor = SIZE / max(picture.shape[:2])
    height, width = (max(8, round(side * factor)) for side in picture.shape[:2])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if factor < 1 else
                      cv2.INTER_LINEAR)


def to_lab(small):
    return cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


# ---- dark corners


def skin_level(small):
    """Grey level of the skin: what three quarters of the picture do not exceed."""
    return np.percentile(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), 75)


def has_dark_corners(small):
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    side = max(1, round(CORNER * min(grey.shape)))
    corners = (grey[rows, columns] for rows in (slice(side), slice(-side, None))
               for columns in (slice(side), slice(-side, None)))
    limit = DARK * skin_level(small)
    return sum(np.median(corner) < limit for corner in corners) >= DARK_CORNERS


# ---- colour patches


def patches(small):
    L, a, b = np.moveaxis(to_lab(cv2.medianBlur(small, 5)), -1, 0)
    hue, chroma = np.degrees(np.arctan2(b, a)), np.hypot(a, b)
    skin = (hue > SKIN_HUE[0]) & (hue < SKIN_HUE[1])
    colourful = (chroma > np.where(skin, HIGH_CHROMA, OTHER_CHROMA)) & (L > PATCH_LIGHT)
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(
        cv2.morphologyEx(colourful.astype(np.uint8), cv2.MORPH_OPEN, disc(2)))
    found = np.zeros(count, bool)
    height, width = L.shape
    for number, (left, top, across, down, area) in enumerate(boxes):
        at_rim = left <= 2 or top <= 2 or left + across >= width - 2 or top + down >= height - 2
        if number and at_rim and PATCH_AREA[0] <= area / L.size <= PATCH_AREA[1]:
            outline, _ = cv2.findContours((labels == number).astype(np.uint8), cv2.RETR_EXTERNAL,
                                          cv2.CHAIN_APPROX_NONE)
            found[number] = area >= PATCH_SOLID * cv2.contourArea(cv2.convexHull(outline[0]))
    return found[labels]


# ---- rulers


def ticks(small):
    """Short dark strokes: centres n×2 (x, y), unit vectors along them n×2, lengths n."""
    L = to_lab(small)[..., 0]
    deep = cv2.morphologyEx(L, cv2.MORPH_BLACKHAT, disc(TICK_THICK // 2)) > TICK_DEPTH
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(deep.astype(np.uint8))
    strokes = []
    for number in range(1, count):
        left, top, across, down, area = boxes[number]
        if area < 5 or max(across, down) > TICK_LENGTH[1]:
            continue
        y, x = np.nonzero(labels[top:top + down, left:left + across] == number)
        points = np.stack([x + left, y + top], 1).astype(float)
        spread, axes = np.linalg.eigh(np.cov(points.T) + np.eye(2) / 12)
        thickness, length = np.sqrt(12 * spread)
        if length >= max(TICK_LENGTH[0], TICK_SLENDER * thickness):
            strokes.append((*points.mean(0), *axes[:, 1], length))
    strokes = np.array(strokes).reshape(-1, 5)
    return strokes[:, :2], strokes[:, 2:4], strokes[:, 4]


def rulers(small):
    """The middles of ticks of one direction that stand side by side at even steps near the rim."""
    centres, along, lengths = ticks(small)
    height, width = small.shape[:2]
    near_rim = (np.minimum(centres, (width, height) - centres) < RULER_RIM * min(height, width)).any(1)
    centres, along, lengths = centres[near_rim], along[near_rim], lengths[near_rim]
    found = np.zeros((height, width), bool)
    for start, (x, y) in enumerate(along):
        ratio = lengths / lengths[start]
        alike = (np.abs(along @ (x, y)) > TICK_ALIKE) & (1 / TICK_RATIO < ratio) & (ratio < TICK_RATIO)
        across, up = ((centres[alike] - centres[start]) @ np.array([[y, x], [-x, y]])).T
        row = longest_row(across, up, lengths[alike])
        if len(row) >= TICKS:
            columns, rows = centres[alike][row].astype(int).T
            found[rows, columns] = True
    return found


def longest_row(across, up, lengths):
    """Numbers of the ticks in the longest row of even steps that begins with the one at 0, 0."""
    def off(here, step):  # the step to each is off by so much; long and short ticks are in line at one end
        aside = np.abs(up - up[here]) > 0.4 * step + np.abs(lengths - lengths[here]) / 2
        return np.where(aside, np.inf, np.abs(across - across[here] - step))

    first, longest = int(np.hypot(across, up).argmin()), []
    for here in np.flatnonzero((across > TICK_STEP[0]) & (across < TICK_STEP[1])):
        row, step = [first], across[here]
        while (misses := off(row[-1], step)).min() < TICK_EVEN * step + 0.6:
            row.append(int(misses.argmin()))
            step = across[row[-1]] - across[row[-2]]
        longest = max(longest, row, key=len)
    return longest


# ---- plain corners


def plain_corner(picture: np.ndarray, label: np.ndarray | None,
                 rng: np.random.Generator) -> tuple[int, int, int] | None:
    """(top, left, side) in px of a square of plain skin in a corner; None where there is none.

    `picture` uint8 H×W×3 RGB; `label` bool H×W, the lesion, or None: then the colours tell what is skin.
    """
    height, width = picture.shape[:2]
    small = shrink(picture)
    lesion = unlike_skin(small) if label is None else label
    spoiled = dark(small) | patches(small) | rulers(small)
    for share in SHARES:
        side = max(1, int(share * min(height, width)))
        for corner in rng.permutation(4):
            top, left = (corner // 2) * (height - side), (corner % 2) * (width - side)
            crop = (slice(top, top + side), slice(left, left + side))
            if not any_in(lesion, crop, (height, width), MARGIN * side) \
                    and not any_in(spoiled, crop, (height, width), 0):
                return int(top), int(left), side
    return None


def any_in(mask, crop, shape, margin):
    """Whether a mask, of any size, holds anything in a crop, and a margin, of a picture of that shape."""
    window = []
    for place, whole, inside in zip(crop, shape, mask.shape):
        first, last = max(0, place.start - margin), min(whole, place.stop + margin)
        window.append(slice(int(first * inside / whole), int(np.ceil(last * inside / whole))))
    return bool(mask[tuple(window)].any())


def dark(small):
    """Where it is much darker than the skin, but for hairs."""
    grey = cv2.medianBlur(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), 9)
    return grey < DARK * skin_level(small)


def unlike_skin(small):
    """Where the colour is not the skin's, as the rim shows it: what a lesion may be.

    The skin's colour is the median of the rim and, in the corners, of each ring around the middle, since
    light fades towards the corners. Spots smaller than SPOT, hairs and freckles, are skin.
    """
    lab = cv2.GaussianBlur(to_lab(cv2.medianBlur(small, 9)), (0, 0), 2)
    height, width = lab.shape[:2]
    edge = max(1, round(RIM * min(height, width)))
    rim = np.ones((height, width), bool)
    rim[edge:-edge, edge:-edge] = False
    rim &= ~dark(small)
    skin = np.tile(np.median(lab[rim] if rim.any() else lab.reshape(-1, 3), 0), (height, width, 1))
    y, x = np.ogrid[-1:1:height * 1j, -1:1:width * 1j]
    rings = (np.hypot(x, y) - 1) * RINGS // 0.4143
    for ring in range(RINGS):
        if (rings == ring).any():
            skin[rings == ring] = np.median(lab[rings == ring], 0)
    difference = lab - skin
    difference[..., 0] = np.minimum(difference[..., 0], 0)  # brighter is no lesion
    unlike = (np.linalg.norm(difference, axis=-1) > SKIN_SPREAD).astype(np.uint8)
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(unlike)
    return (unlike > 0) & (boxes[:, 4] >= SPOT * unlike.size)[labels]
