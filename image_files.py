"""Files of images and labels: which are read, how they become pixels, and which lesion."""
import logging
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, PngImagePlugin

from utils import UserError

# Pillow warns at 90 million pixels and refuses at twice that; here its limit holds at once
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)
warnings.filterwarnings('ignore', category=UserWarning, module=r'PIL\.')  # of metadata
logging.getLogger('PIL').setLevel(logging.CRITICAL)  # errors are raised
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # errors are raised
PngImagePlugin.MAX_TEXT_CHUNK = 2 ** 24  # bytes; color profiles of printers have a few million

IMAGE_SUFFIXES = {'.png', '.jpg', '.jpeg', '.jfif', '.bmp', '.tif', '.tiff', '.webp', '.gif'}
FORMATS = ('PNG', 'JPEG', 'BMP', 'TIFF', 'WEBP', 'GIF')  # no other decoder runs, whatever the name
DICOM_SUFFIXES = {'.dcm', '.dicom'}
RANGE = (0.05, 99.95)  # ours: percentiles that become black and white in images of over 8 bits
AREA_SHARE = 0.04  # ours: of a label's shorter side, the side of an area that is no soft outline
RIPPLE_SHARE = 0.015  # ours: likewise, of an area of one value that is no ripple of Lanczos
OUTLINE_SHARE = 0.12  # ours: of a label's shorter side, the width of the softest outline
NOISE = 1 / 16  # ours: of JPEG, near nothing or the highest value of a label
FEW_VALUES = 16  # ours: labels of so few values have no noise

# what lies beside images
NAMED_AS_LABEL, NAMED_AS_MASK = 'labels', 'named as masks are'
THUMBNAIL = 'in folders of thumbnails or deleted files'
DICOM = 'DICOM (convert to PNG or NIfTI)'
MASK_WORD = re.compile(  # in a name, between separators
    r'masks?|gts?|ground_?truth|truth|segm?|labels?(tr|ts)?|segmentations?(class|object)?|anno'
    r'|annot|annotations?', re.I)
LESION_WORD = re.compile(  # that photographs are named by, too
    r'lesions?|rois?|tumou?rs?|(1st|2nd)?manual|(1st|2nd)ho|bin|binary|contours?|outlines?|pred'
    r'|predictions?', re.I)
THUMBNAIL_WORD = re.compile('tn|thumb|thumbnail', re.I)
PART = re.compile(r'[^\s_.()\[\]-]+')
FUSED = re.compile('(?<=.)(masks?|segmentation)$', re.I)  # as in xmask
PARTS = 24  # of longer names only so many are looked at
THUMBNAIL_FOLDERS = {'@eadir', '#recycle', '@recycle', '$recycle.bin', 'recycler', '__macosx',
                     'thumb', 'thumbs', 'thumbs.db', 'thumbnail', 'thumbnails', 'lost+found',
                     '@tmp', '#snapshot', '~snapshot', '@recently-snapshot'}
MASK_VALUES = 16  # a mask has at most so many gray values, or those of a label
COLORS = 256  # gray, a palette: what may be a mask beside an image


def no_images(folder: Path, paths: list[Path], are_masks: bool = False) -> dict[Path, str]:
    """Those files below a folder that are no images to learn from or to predict, and why: DICOM,
    thumbnails, and masks, unless all `are_masks`. A mask is x_segmentation, or it is named as one
    (see `is_mask`) and its pixels are those of one."""
    stems = {(path.parent, path.stem.casefold()) for path in paths}
    folders = {path: path.relative_to(folder).parts[:-1] for path in paths}
    others = {path.stem.casefold() for path in paths  # images that a folder of masks belongs to
              if not any(words_of(name, MASK_WORD, LESION_WORD) for name in folders[path])}
    reasons = {}
    for path in paths:
        beside = words_of(path.stem, MASK_WORD, LESION_WORD, THUMBNAIL_WORD) and any(
            (path.parent, name) in stems for name in names_within(path.stem))
        if path.suffix.lower() in DICOM_SUFFIXES:
            reasons[path] = DICOM
        elif any(name.casefold() in THUMBNAIL_FOLDERS for name in folders[path]) \
                or beside and words_of(path.stem, THUMBNAIL_WORD):
            reasons[path] = THUMBNAIL
        elif are_masks:
            continue
        elif path.stem.lower().endswith('_segmentation'):
            reasons[path] = NAMED_AS_LABEL
        elif is_mask(path, folders[path], beside, others):
            reasons[path] = NAMED_AS_MASK
    return reasons


def is_mask(path: Path, folders: tuple[str, ...], beside: bool, others: set[str]) -> bool:
    """Whether a file, that is below these folders and perhaps `beside` an image of a part of its
    name, is a mask: its name or one of the folders says so (folders by words as lesion only where
    an image belongs to it, of the same name among `others`), and it holds few gray values or a
    label; where the word is one as mask and an image belongs to it, few colors are enough."""
    sure = words_of(path.stem, MASK_WORD)
    likely = sure or words_of(path.stem, LESION_WORD)
    sure_folder = any(words_of(name, MASK_WORD) for name in folders)
    in_folder = sure_folder or any(words_of(name, LESION_WORD) for name in folders)
    if not (likely or in_folder):
        return False
    names = {path.stem.casefold(), *(names_within(path.stem) if likely else ())}
    paired = likely and beside or in_folder and not names.isdisjoint(others)
    if sure and beside or sure_folder and paired:
        return has_few_colors(path)
    return bool(paired or likely or sure_folder) and has_values_of_mask(path)


@lru_cache(65536)
def words_of(name: str, *words: re.Pattern) -> bool:
    """Whether a part of a name, without numbers at its end, is one of the words."""
    parts = [part[0].rstrip('0123456789') for part in PART.finditer(FUSED.sub(r' \1', name))]
    return any(word.fullmatch(part) for word in words for part in parts)


def names_within(stem: str) -> set[str]:
    """What the image may be called that a file belongs to by its name: all that is left, of x_mask
    or mask_x (1), without a part at an end."""
    text = FUSED.sub(r' \1', stem.casefold())
    ends = [part.span() for part in PART.finditer(text)][:PARTS]
    return {text[start:end] for index, (start, _) in enumerate(ends)
            for _, end in ends[index:] if end - start < len(text)}


def counted(reasons: dict[Path, str]) -> str:
    """How many files there are for each reason, and the first of each."""
    first = {reason: path.name for path, reason in reversed(reasons.items())}
    counts = Counter(reasons.values()).most_common()
    return ', '.join(f'{count} {reason}, as {first[reason]}' for reason, count in counts)


def has_values_of_mask(path: Path) -> bool:
    """Whether the file holds few gray values or is a label otherwise; False if it is broken."""
    try:
        return len(np.unique(label_values(path))) <= MASK_VALUES or read_label(path) is not None
    except UserError:
        return False


def has_few_colors(path: Path) -> bool:
    """Whether the file is gray or has at most COLORS colors; False if it is broken."""
    try:
        return read_image(path).getcolors(COLORS) is not None
    except UserError:
        return False


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """A Pillow image, not decoded yet, of a format that is promised; UserError for all errors."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise ValueError(f'{image.width}×{image.height} pixels, above the limit of '
                                 f'{Image.MAX_IMAGE_PIXELS}')
            if is_thumbnail_of_a_page(image):
                raise ValueError('its first page is smaller than another: which is the image?')
            yield image
    except UserError:
        raise
    except Exception as error:  # decoders of broken files raise anything
        if is_dicom(path):
            raise UserError(f'{path}: DICOM, which is not read; convert it to PNG, or a series to '
                            'NIfTI (as dcm2niix does)') from error
        raise UserError(f'{path}: cannot be read as an image ({error or type(error).__name__}); '
                        'repair it, save it as PNG, or remove it') from error


def is_thumbnail_of_a_page(image: Image.Image) -> bool:
    """Whether a later page of a TIFF is larger than the first, which is read."""
    if image.format != 'TIFF' or image.n_frames == 1:
        return False
    sizes = [math.prod(image.size)]
    with suppress(Exception):  # as of decoders: what follows the first page may be damaged
        for page in range(1, image.n_frames):
            image.seek(page)
            sizes.append(math.prod(image.size))
    image.seek(0)
    return max(sizes) > sizes[0]


def is_dicom(path: Path) -> bool:
    """Whether the content is that of a DICOM file."""
    try:
        with open(path, 'rb') as file:
            return file.read(132)[128:] == b'DICM'
    except OSError:
        return False


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image as Pillow decodes it, 1 to 8: 1 is upright, from 5 on width
    and height are exchanged. Pillow itself turns TIFF; what is damaged counts as upright. A PNG is
    decoded if it says nothing before its pixels: it may say so after them."""
    try:
        value = 1 if image.format == 'TIFF' else image.getexif().get(274, 1)
    except Exception:  # as of decoders
        return 1
    return value if value in range(1, 9) else 1


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels H×W or H×W×3 as stored, turned and mirrored to what an EXIF orientation shows."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels[::-1] if orientation in (3, 4, 7, 8) else pixels)


def shown_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of what is seen."""
    return image.size if orientation(image) < 5 else image.size[::-1]


def deep_values(path: Path, image: Image.Image) -> tuple[np.ndarray, np.ndarray] | None:
    """Color, H×W or H×W×3, and opacity, H×W in [0, 1], of an image of more than 8 bits a channel,
    as stored; None for other images. Raises for those that cannot be read with all their bits."""
    tags = image.tag_v2 if image.format == 'TIFF' else {}
    bits, clear = tags.get(258, (8,)), image.info.get('transparency')
    is_int8 = image.mode == 'L' and tags.get(339) in (2, (2,)) and max(bits) == 8
    if image.mode.startswith(('I', 'F')) or is_int8:
        return gray_numbers(np.asarray(image), tags), np.ones(image.size[::-1]) if clear is None \
            else (np.asarray(image) != clear).astype(float)
    is_png = image.format == 'PNG' and str(image.tile[0].args).endswith('16B')
    if max(bits) <= 8 and not is_png:
        return None
    separate, premultiplied = (tags.get(tag) in (value, (value,))
                               for tag, value in ((284, 2), (338, 1)))
    image.load()  # Pillow keeps 8 bits of these, but notices damage that OpenCV does not
    values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if separate or image.mode == 'CMYK' or values is None or values.dtype != np.uint16 \
            or values.shape[:2] != image.size[::-1] or values.shape[2:] not in ((3,), (4,)):
        raise ValueError(f'{max(bits)} bits a channel in {image.mode}, stored in a way that is not '
                         'read')
    colors = values[..., 2::-1]
    if clear is not None:
        return colors, (colors != np.array(clear)).any(axis=2).astype(float)
    has_opacity = values.shape[2] == 4 and 'A' in image.getbands() and not premultiplied
    return colors, values[..., 3] / 65535 if has_opacity else np.ones(values.shape[:2])


def gray_numbers(values: np.ndarray, tags: Mapping[int, Any]) -> np.ndarray:
    """Gray values H×W of Pillow as the TIFF's tags, if any, mean them: of the sign that is stored,
    and with black as the lowest."""
    if values.dtype == np.uint8:
        values = values.view(np.int8)
    elif (tags.get(258), tags.get(339, (1,))) == ((32,), (1,)) and values.dtype == np.int32:
        values = values.view(np.uint32)
    if tags.get(262) == 0 and np.isfinite(values).any():  # white is zero
        values = values.astype(np.float64)
        values = values[np.isfinite(values)].max() - values
    return values


def scaled_to_bytes(values: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Numbers of any range as uint8: RANGE of those that are finite, and not of transparent parts,
    goes from black to white; what is not finite is black or, above, white; transparent is black."""
    seen = values[np.isfinite(values) & (opacity > 0).reshape(*opacity.shape, *[1] * (
        values.ndim - 2))]
    if not seen.size and values.size and opacity.any():
        raise ValueError('not one value is finite')
    if not seen.size:
        return np.zeros(values.shape, np.uint8)
    low, high = (float(np.percentile(seen, percent, method=method))
                 for percent, method in zip(RANGE, ('lower', 'higher'), strict=True))
    if high <= low:
        low, high = float(seen.min()), float(seen.max())
    values = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    unit = ((values - low) / (high - low)).clip(0, 1) if high > low else np.zeros(values.shape)
    return np.rint((unit.T * opacity.T).T * 255).astype(np.uint8)


def on_black(image: Image.Image) -> Image.Image:
    """The image, its transparent parts, if any, laid on black."""
    if {'A', 'a'} & set(image.getbands()) or 'transparency' in image.info:
        image = (image.convert('LA') if image.mode == 'La' else image).convert('RGBA')
        return Image.alpha_composite(Image.new('RGBA', image.size, 'black'), image)
    return image


def read_image(path: Path, channels: int = 3) -> Image.Image:
    """An 8-bit image with 3 (RGB) or 1 (gray) channels as it is seen, without any metadata; raises
    UserError. Transparent parts lie on black; more than 8 bits a channel and floating point are
    scaled by their own range; of several pages the first is read; EXIF orientation is applied."""
    with open_image(path) as image:
        deep = deep_values(path, image)
        upright = orientation(image)
        image = Image.fromarray(scaled_to_bytes(*deep)) if deep else on_black(image)
        image = image.convert('RGB' if channels == 3 else 'L')
        if upright != 1:
            image = Image.fromarray(turn(np.asarray(image), upright))
        image.info = {}  # what is written from it must not hold a profile or a transparent color
        return image


def label_values(path: Path) -> np.ndarray:
    """The gray values H×W of a label as stored, on what is seen, of any type; raises UserError.
    Where the colors are all the same, the label may be in a palette's numbers or the opacity."""
    with open_image(path) as image:
        deep = deep_values(path, image)
        upright = orientation(image)
        if deep:
            values, opacity = deep
            values = values if values.ndim == 2 else values @ np.array((0.299, 0.587, 0.114))
            values = values * opacity if opacity.min() < 1 else values
        else:
            values = np.asarray(on_black(image).convert('L'))
            opacity = np.asarray(image.convert('RGBA').getchannel('A'))
        if values.size and values.min() == values.max():
            others = [opacity, np.asarray(image)] if image.mode == 'P' else [opacity]
            values = next((other for other in others if other.min() < other.max()), values)
        return turn(values, upright)


def read_label(path: Path, image: Path | None = None) -> np.ndarray:
    """A label as a bool array H×W: lesion is above one half of the largest value, be that 1, 255 or
    65535; of zeros nothing is. It lies on its `image` as that is seen; a label of the size that is
    stored is turned with it. Raises UserError for another size, for numbers up to 127 of more than
    two kinds, and for areas, not soft outlines, between nothing and the largest value."""
    values = label_values(path)
    highest = float(values.max())
    if not np.isfinite(values).all() or values.min() < 0:
        raise UserError(f'{path}: a label has two values, 0 and another, but this one has values '
                        'that are negative or not finite; draw lesions as 255, the rest as 0')
    count = len(np.unique(values))
    if count > 2 and highest <= 127 and (values == np.rint(values)).all():
        raise UserError(f'{path}: a label has two values, 0 and another, but this one has {count} '
                        f'up to {highest:g}; draw each kind of lesion as 255, or as 0')
    if count > 2 and has_areas_between(values / highest):
        raise UserError(f'{path}: a label has two values, 0 and another, but this one also has '
                        'areas between; draw each kind of lesion as 255, or as 0')
    lesion = values > highest / 2
    return lesion if image is None else fitted_label(path, lesion, image)


def fitted_label(path: Path, lesion: np.ndarray, image_path: Path) -> np.ndarray:
    """The lesion H×W of a label's file as it lies on the image as seen; UserError for its size."""
    with open_image(image_path) as image:
        shown, stored, upright = shown_size(image), image.size, orientation(image)
    if lesion.shape == shown[::-1]:
        return lesion
    if lesion.shape == stored[::-1]:  # drawn by a program that does not know of the orientation
        return turn(lesion, upright)
    raise UserError('{}: {}×{} px, but '.format(path, *lesion.shape[::-1])
                    + '{} is {}×{} px'.format(image_path.name, *shown))


def has_areas_between(values: np.ndarray) -> bool:
    """Whether a label H×W in [0, 1] has areas between: of one value; in proportion to its size, of
    nearly one; far from what is nothing or highest; or for the most part. Outlines of an enlarged
    label are slopes; what is as near to an end as noise of JPEG counts only among few values."""
    few = len(np.unique(values)) <= FEW_VALUES
    values = values.astype(np.float32)
    side = 3 if few else max(3, round(RIPPLE_SHARE * min(values.shape)))
    same = range_within(values, side) == 0
    if (same & (values > (0 if few else NOISE)) & (values < 1 - NOISE)).any():
        return True
    between = ((values > 0.1) & (values < 0.9)).astype(np.uint8)
    if not cv2.erode(between, np.ones((3, 3), np.uint8)).any():
        return False
    side = max(3, round(AREA_SHARE * min(values.shape)))
    inside = cv2.erode(between, np.ones((side, side), np.uint8)) > 0
    if between.mean() > 1 / 3 or (inside & (range_within(values, side) < 0.1)).any():
        return True
    reach = max(3, OUTLINE_SHARE * min(values.shape))
    ends = [cv2.distanceTransform(is_not_end.astype(np.uint8), cv2.DIST_L2, 3)
            for is_not_end in (values > 0.1, values < 0.9)]
    return bool((np.maximum(*ends)[between > 0] > reach).mean() > 1 / 4)


def range_within(values: np.ndarray, side: int) -> np.ndarray:
    """Highest minus lowest value, H×W, within a square around each pixel; infinite where the square
    goes beyond the border."""
    window, border = np.ones((side, side), np.uint8), {'borderType': cv2.BORDER_CONSTANT}
    return (cv2.dilate(values, window, borderValue=np.inf, **border)
            - cv2.erode(values, window, borderValue=-np.inf, **border))
