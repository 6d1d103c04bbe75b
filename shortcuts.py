"""Whether something other than disease distinguishes the training folders (shortcut learning): few
or equal images, and looks that alone tell the folders apart."""
import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from config import Config
from image_files import FORMATS
from utils import area_under_curve

FEW = 20  # ours: images of a folder, below which training says so
LEAST_COMPARED = 10  # ours: images of either folder, below which an AUC is chance
SUSPICIOUS = 0.95  # ours: AUC of one number, above which training names it


class Appearance(NamedTuple):
    """What may give a training image away: of its file, and of its pixels as the network sees
    them."""

    digest: str  # of the pixels
    format: str  # PNG, JPEG …
    size: tuple[int, int]  # width and height of the file, px
    brightness: float  # mean gray level, 0 to 255
    sharpness: float  # root mean square of the Laplacian, gray levels
    saturation: float  # mean difference of the largest and the smallest channel, 0 to 255


class Clue(NamedTuple):
    """A number that must not distinguish the folders, and the flag that hides it from training."""

    name: str
    value: Callable[[Appearance], float]
    option: str
    setting: object


CLUES = (Clue('image size', lambda one: one.size[0] * one.size[1], 'blur_jitter', True),
         Clue('width by height', lambda one: one.size[0] / one.size[1], 'rotate', 180),
         Clue('mean brightness', lambda one: one.brightness, 'contrast_jitter', True),
         Clue('sharpness', lambda one: one.sharpness, 'blur_jitter', True),
         Clue('color saturation', lambda one: one.saturation, 'img_ch', 1))


def appearance_of(path: Path, image: Image.Image) -> Appearance:
    """Of a file that can be read, and its decoded image at the network's size."""
    with Image.open(path, formats=FORMATS) as file:
        kind, size = file.format, file.size
    pixels = np.asarray(image)
    if pixels.ndim == 3:
        gray, few = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), pixels[::4, ::4]
        spread = float(np.subtract(few.max(2), few.min(2)).mean())
    else:
        gray, spread = pixels, 0.0
    edges = cv2.Laplacian(gray, cv2.CV_32F)
    return Appearance(hashlib.blake2b(pixels.tobytes(), digest_size=8).hexdigest(), kind, size,
                      cv2.mean(gray)[0], cv2.norm(edges) / edges.size ** 0.5, spread)


def warnings(images: dict[str, dict[Path, Appearance]], config: Config) -> list[str]:
    """A line for each thing that makes the folders senseless to learn from. `images`: those of the
    domains A (disease) and B (normal), none of them empty."""
    lines = [f'only {len(images[domain])} images in train{domain} ({kind}): with fewer than {FEW} '
             'training hardly learns; add images'
             for domain, kind in (('A', 'disease'), ('B', 'normal')) if len(images[domain]) < FEW]
    both = equal_images(images)
    if both:
        lines.append(f'{len(both)} image{"s are" if len(both) > 1 else " is"} in both folders, as '
                     f'trainA/{both[0][0].name} and trainB/{both[0][1].name}: nothing can be '
                     'learned from them; remove them from one')
    return lines + telling_looks(images, config)


def equal_images(images: dict[str, dict[Path, Appearance]]) -> list[tuple[Path, Path]]:
    """Disease and normal images of equal pixels."""
    normal = {one.digest: path for path, one in images['B'].items()}
    return [(path, normal[one.digest]) for path, one in images['A'].items() if one.digest in normal]


def telling_looks(images: dict[str, dict[Path, Appearance]], config: Config,
                  names: tuple[str, str] = ('trainA', 'trainB')) -> list[str]:
    """A line for each look that alone separates the folders, of these names."""
    lines = []
    if min(map(len, images.values())) < LEAST_COMPARED:
        return lines
    looks = [list(images[domain].values()) for domain in 'AB']
    for clue in (*CLUES, format_clue(*looks)):
        of_disease, of_normal = (np.array([clue.value(one) for one in ones]) for ones in looks)
        area = area_under_curve(of_disease, of_normal)
        area = max(area, 1 - area)
        if area > SUSPICIOUS:
            is_set = getattr(config, clue.option) == clue.setting
            lines.append(f'{clue.name} alone separates {names[0]} from {names[1]} (AUC {area:.2f}; '
                         f'means {of_disease.mean():.3g} and {of_normal.mean():.3g}) and may be '
                         'learned in place of disease; choose normal images that are like the '
                         f'disease ones; --{clue.option} {clue.setting}'
                         f'{", which is set," * is_set} helps')
    return lines


def format_clue(disease: list[Appearance], normal: list[Appearance]) -> Clue:
    """The file's format, as the share of disease images among those of it."""
    of_disease, of_normal = (Counter(one.format for one in ones) for ones in (disease, normal))
    share = {kind: of_disease[kind] / (of_disease + of_normal)[kind]
             for kind in of_disease + of_normal}
    return Clue('file format', lambda one: share[one.format], 'blur_jitter', True)
