"""The built-in data set: synthetic dermoscopy images with exact lesion masks.

Disease and normal images show the same kind of skin; only a lesion distinguishes them. Hairs,
freckles, reddish patches, uneven light and darker corners are in both, so that darkness alone does
not find the lesion."""
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from runtime.files import TEXT, writing
from runtime.staging import new_staging_folder, remove_leftovers, replace_folder
from runtime.threads import cpu_count, prefetch
from utils import progress_interval


class Subset(NamedTuple):
    folder: str
    count: int
    diseased: bool
    label_folder: str | None = None


SUBSETS = (Subset('trainA', 200, True), Subset('trainB', 200, False),
           Subset('testA', 40, True, 'test/labels'), Subset('testB', 40, False),
           Subset('val/images', 30, True, 'val/labels'))

LESION_AREA = (0.04, 0.30)  # of the image

README = """Synthetic dermoscopy images, drawn by preparation/phantom.py (seed {seed}, {size} px).
Not patients' data. Delete this folder to have it drawn again."""


def draw_skin(rng: np.random.Generator, size: int, diseased: bool) -> tuple[np.ndarray, np.ndarray]:
    """One image size×size×3 RGB and its lesion mask size×size, uint8; the mask is 0 or 255. From
    equal generators a diseased and a normal image differ only in the lesion."""
    skin = _draw_bare_skin(rng, size)
    hairs = _draw_hairs(rng, size)
    hair_color = rng.uniform(0.10, 0.35) * np.array([1.0, 0.8, 0.7])
    light = _draw_light(rng, size)
    grain = cv2.GaussianBlur(rng.normal(0, 1, (size, size, 3)), (0, 0), size / 350)
    noise = grain / grain.std() * rng.uniform(0.010, 0.018)
    weight = np.zeros((size, size))
    if diseased:
        weight = _lesion_weight(rng, size)
        skin = skin * (1 - weight[..., None] * (1 - _lesion_tint(rng, weight)))
    skin = skin + hairs[..., None] * (hair_color - skin)  # hairs lie on the lesion
    image = skin * light[..., None] + noise
    return (np.rint(image.clip(0, 1) * 255).astype(np.uint8),
            np.where(weight > 0.5, 255, 0).astype(np.uint8))


def _smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Noise size×size with about `cells` hills across, in about [-1, 1]."""
    grid = rng.uniform(-1, 1, (cells + 3, cells + 3))
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)


def _draw_bare_skin(rng: np.random.Generator, size: int) -> np.ndarray:
    """Bare skin, RGB in [0, 1]: tone, mottling, reddish patches, fine lines, freckles."""
    tone = np.array([0.84, 0.68, 0.60]) + rng.normal(0, 0.03, 3) + rng.normal(0, 0.07)
    skin = np.tile(tone, (size, size, 1))
    skin += 0.035 * (_smooth_noise(rng, size, 3) + 0.6 * _smooth_noise(rng, size, 10))[..., None]
    redness = rng.uniform(0.02, 0.09) * _smooth_noise(rng, size, 5).clip(0)
    skin -= redness[..., None] * np.array([0.1, 1.0, 0.8])
    lines = np.exp(-(_smooth_noise(rng, size, 40) / 0.12) ** 2)
    skin -= rng.uniform(0.01, 0.03) * lines[..., None]
    y, x = np.mgrid[0:1:size * 1j, 0:1:size * 1j]
    for _ in range(rng.integers(0, 7)):
        center, radius = rng.uniform(0, 1, 2), rng.uniform(0.008, 0.022)
        freckle = np.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / radius ** 2)
        skin -= rng.uniform(0.10, 0.30) * freckle[..., None] * np.array([0.7, 1.0, 1.0])
    return skin


def _draw_hairs(rng: np.random.Generator, size: int) -> np.ndarray:
    """Opacity of hairs, size×size in [0, 1]: thin arcs, many of them in half of the images."""
    canvas = np.zeros((size, size), np.uint8)
    positions = np.linspace(-1, 1, 30)
    for _ in range(rng.integers(0, 3) if rng.random() < 0.5 else rng.integers(4, 13)):
        center, angle = rng.uniform(0, size, 2), rng.uniform(0, np.pi)
        length, bend = rng.uniform(0.15, 0.6) * size, rng.uniform(-0.15, 0.15) * size
        along, across = positions * length, bend * positions ** 2
        points = np.stack([center[0] + np.cos(angle) * along - np.sin(angle) * across,
                           center[1] + np.sin(angle) * along + np.cos(angle) * across], -1)
        thickness = max(1, round(rng.uniform(0.6, 2.2) * size / 256))
        cv2.polylines(canvas, [np.rint(points).astype(np.int32)], False, 255, thickness,
                      cv2.LINE_AA)
    return 0.85 * canvas / 255


def _draw_light(rng: np.random.Generator, size: int) -> np.ndarray:
    """Brightness size×size, about 1: uneven light, and in half of the images a vignette."""
    y, x = np.mgrid[-1:1:size * 1j, -1:1:size * 1j]
    light = 1 + 0.12 * _smooth_noise(rng, size, 1) + rng.normal(0, 0.03)
    strength = rng.uniform(0.2, 0.8) * (rng.random() < 0.5)
    distance = np.hypot(x - rng.normal(0, 0.05), y - rng.normal(0, 0.05))
    return light * (1 - strength * ((distance - 0.85) / 0.4).clip(0, 1))


def _lesion_weight(rng: np.random.Generator, size: int) -> np.ndarray:
    """How much of each pixel is lesion, size×size in [0, 1]: a blob of irregular outline."""
    y, x = np.mgrid[0:1:size * 1j, 0:1:size * 1j]
    ragged = rng.uniform(0.3, 1.0)
    warp = [0.09 * ragged * (_smooth_noise(rng, size, 4) + 0.4 * _smooth_noise(rng, size, 12))
            for _ in range(2)]
    stretch, angle = rng.uniform(0.7, 1.4), rng.uniform(0, np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    dx, dy = (position + shift - rng.uniform(0.35, 0.65)
              for position, shift in zip((x, y), warp, strict=True))
    distance = np.hypot((cos * dx + sin * dy) * stretch ** 0.5,
                        (cos * dy - sin * dx) / stretch ** 0.5)
    # the outline is the level of `distance` that encloses the area
    area = int(rng.uniform(*LESION_AREA) * size ** 2)
    radius = np.partition(distance.ravel(), area)[area]
    inside = (distance < radius).astype(np.uint8)
    depth = (cv2.distanceTransform(inside, cv2.DIST_L2, 5)
             - cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5)) / size
    width = rng.uniform(0.01, 0.035)  # of the soft outline, in image widths
    return (depth / width + 0.5).clip(0, 1)


def _lesion_tint(rng: np.random.Generator, weight: np.ndarray) -> np.ndarray:
    """The share of light that the lesion reflects, RGB: brown, with a network of pigment, darker
    islands and, in most, a darker middle; some lesions are pale."""
    size = len(weight)
    depth = rng.uniform(0.35, 0.85) + 0.15 * _smooth_noise(rng, size, 6)
    network = np.exp(-(_smooth_noise(rng, size, 30) / 0.25) ** 2)
    depth += rng.uniform(0, 0.25) * network + rng.uniform(0, 0.25) * (weight - 0.5)
    depth += rng.uniform(0, 0.4) * (_smooth_noise(rng, size, 8) - 0.3).clip(0)
    absorbed = np.array([0.45, 0.68, 0.75]) + rng.normal(0, 0.04, 3)
    return (1 - depth.clip(0.15, 1.15)[..., None] * absorbed).clip(0.05, 1)


def write_phantom(folder: Path, seed: int = 0, size: int = 256, progress: bool = True) -> None:
    """Write the data set in the published layout, RGB PNG files of size×size px, each a function of
    (seed, subset, number). It grows beside `folder`, whose lock the caller holds."""
    temporary = new_staging_folder(folder, '--data_root')

    def write(item: tuple[int, Subset, int]) -> None:
        number, subset, index = item
        image, mask = draw_skin(np.random.default_rng((seed, number, index)), size, subset.diseased)
        stem = f'{"disease" if subset.diseased else "normal"}_{index + 1:04d}'
        with writing(folder / subset.folder / f'{stem}.png'):
            Image.fromarray(image).save(temporary / subset.folder / f'{stem}.png', compress_level=1)
            if subset.label_folder:
                Image.fromarray(mask).save(temporary / subset.label_folder
                                           / f'{stem}_segmentation.png')

    items = [(number, subset, index) for number, subset in enumerate(SUBSETS)
             for index in range(subset.count)]
    try:
        for subset in SUBSETS:
            for name in filter(None, (subset.folder, subset.label_folder)):
                (temporary / name).mkdir(parents=True)
        for _ in tqdm(prefetch(write, items, cpu_count()), 'drawing the phantom data', len(items),
                      unit=' images', disable=not progress, mininterval=progress_interval()):
            pass
        with writing(folder / 'README.txt'):
            (temporary / 'README.txt').write_text(README.format(seed=seed, size=size), **TEXT)
        replace_folder(folder, temporary)
    finally:
        remove_leftovers(folder)
