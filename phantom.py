"""The built-in data set: synthetic dermoscopy pictures with exact lesion masks.

Disease and normal pictures show the same kind of skin; a lesion is all that tells them apart.
Hairs, freckles, reddish patches, uneven light and darker picture corners are in both, so that
darkness alone does not find the lesion.
"""
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from utils import ahead, bar_interval, cores

# folder, pictures, with lesion, folder of the labels
SETS = (('trainA', 200, True, None),
        ('trainB', 200, False, None),
        ('testA', 40, True, 'test/labels'),
        ('testB', 40, False, None),
        ('val/images', 30, True, 'val/labels'))

LESION_AREA = (0.04, 0.30)  # of the picture

README = """Synthetic dermoscopy pictures, made by phantom.py with seed {seed} at {size} px.
Not patients' data. Delete this folder to have it made again.
"""


# ------------------------------------------------------------------------------------- drawing


def draw_skin(rng: np.random.Generator, size: int, diseased: bool) -> tuple[np.ndarray, np.ndarray]:
    """One picture: image size×size×3 RGB and lesion mask size×size, uint8; the mask is 0 or 255.

    From equal generators a diseased and a normal picture differ only in the lesion.
    """
    skin = _draw_skin(rng, size)
    hairs = _draw_hairs(rng, size)
    hair_colour = rng.uniform(0.10, 0.35) * np.array([1.0, 0.8, 0.7])
    light = _draw_light(rng, size)
    grain = cv2.GaussianBlur(rng.normal(0, 1, (size, size, 3)), (0, 0), size / 350)
    noise = grain / grain.std() * rng.uniform(0.010, 0.018)

    weight = np.zeros((size, size))
    if diseased:
        weight = _lesion_weight(rng, size)
        skin = skin * (1 - weight[..., None] * (1 - _lesion_tint(rng, weight)))
    skin = skin + hairs[..., None] * (hair_colour - skin)  # hairs lie on the lesion
    picture = skin * light[..., None] + noise
    return (np.rint(picture.clip(0, 1) * 255).astype(np.uint8),
            np.where(weight > 0.5, 255, 0).astype(np.uint8))


def _smooth_noise(rng, size, cells) -> np.ndarray:
    """Noise size×size with about `cells` hills across, in about [-1, 1]."""
    grid = rng.uniform(-1, 1, (cells + 3, cells + 3))
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)


def _draw_skin(rng, size) -> np.ndarray:
    """Bare skin, RGB: tone, mottling, reddish patches, fine lines, freckles."""
    tone = np.array([0.84, 0.68, 0.60]) + rng.normal(0, 0.03, 3) + rng.normal(0, 0.07)
    skin = np.tile(tone, (size, size, 1))
    skin += 0.035 * (_smooth_noise(rng, size, 3) + 0.6 * _smooth_noise(rng, size, 10))[..., None]
    redness = rng.uniform(0.02, 0.09) * _smooth_noise(rng, size, 5).clip(0)
    skin -= redness[..., None] * np.array([0.1, 1.0, 0.8])
    lines = np.exp(-(_smooth_noise(rng, size, 40) / 0.12) ** 2)
    skin -= rng.uniform(0.01, 0.03) * lines[..., None]
    y, x = np.mgrid[0:1:size * 1j, 0:1:size * 1j]
    for _ in range(rng.integers(0, 7)):
        place, radius = rng.uniform(0, 1, 2), rng.uniform(0.008, 0.022)
        spot = np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / radius ** 2)
        skin -= rng.uniform(0.10, 0.30) * spot[..., None] * np.array([0.7, 1.0, 1.0])
    return skin


def _draw_hairs(rng, size) -> np.ndarray:
    """Where hairs are, in [0, 1]: thin arcs, in half of the pictures many."""
    canvas = np.zeros((size, size), np.uint8)
    steps = np.linspace(-1, 1, 30)
    for _ in range(rng.integers(0, 3) if rng.random() < 0.5 else rng.integers(4, 13)):
        middle, turn = rng.uniform(0, size, 2), rng.uniform(0, np.pi)
        length, bend = rng.uniform(0.15, 0.6) * size, rng.uniform(-0.15, 0.15) * size
        along, across = steps * length, bend * steps ** 2
        points = np.stack([middle[0] + np.cos(turn) * along - np.sin(turn) * across,
                           middle[1] + np.sin(turn) * along + np.cos(turn) * across], -1)
        thickness = max(1, round(rng.uniform(0.6, 2.2) * size / 256))
        cv2.polylines(canvas, [np.rint(points).astype(np.int32)], False, 255, thickness,
                      cv2.LINE_AA)
    return 0.85 * canvas / 255


def _draw_light(rng, size) -> np.ndarray:
    """Uneven light, and in half of the pictures darker corners, as a lens leaves them."""
    y, x = np.mgrid[-1:1:size * 1j, -1:1:size * 1j]
    light = 1 + 0.12 * _smooth_noise(rng, size, 1) + rng.normal(0, 0.03)
    strength = rng.uniform(0.2, 0.8) * (rng.random() < 0.5)
    distance = np.hypot(x - rng.normal(0, 0.05), y - rng.normal(0, 0.05))
    return light * (1 - strength * ((distance - 0.85) / 0.4).clip(0, 1))


def _lesion_weight(rng, size) -> np.ndarray:
    """How much of each pixel is lesion, in [0, 1]: a blob of irregular outline."""
    y, x = np.mgrid[0:1:size * 1j, 0:1:size * 1j]
    ragged = rng.uniform(0.3, 1.0)
    warp = [0.09 * ragged * (_smooth_noise(rng, size, 4) + 0.4 * _smooth_noise(rng, size, 12))
            for _ in range(2)]
    stretch, turn = rng.uniform(0.7, 1.4), rng.uniform(0, np.pi)
    cos, sin = np.cos(turn), np.sin(turn)
    dx, dy = (position + shift - rng.uniform(0.35, 0.65) for position, shift in zip((x, y), warp))
    distance = np.hypot((cos * dx + sin * dy) * stretch ** 0.5,
                        (cos * dy - sin * dx) / stretch ** 0.5)
    # the outline is the level that encloses the wanted area
    wanted = int(rng.uniform(*LESION_AREA) * size ** 2)
    radius = np.partition(distance.ravel(), wanted)[wanted]
    inside = (distance < radius).astype(np.uint8)
    depth = (cv2.distanceTransform(inside, cv2.DIST_L2, 5)
             - cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5)) / size
    width = rng.uniform(0.01, 0.035)  # of the soft outline, in picture widths
    return (depth / width + 0.5).clip(0, 1)


def _lesion_tint(rng, weight) -> np.ndarray:
    """The share of light that the lesion sends back, RGB: brown, with a net of pigment, darker
    islands and, in most, a darker middle; some lesions are pale."""
    size = len(weight)
    depth = rng.uniform(0.35, 0.85) + 0.15 * _smooth_noise(rng, size, 6)
    net = np.exp(-(_smooth_noise(rng, size, 30) / 0.25) ** 2)
    depth += rng.uniform(0, 0.25) * net + rng.uniform(0, 0.25) * (weight - 0.5)
    depth += rng.uniform(0, 0.4) * (_smooth_noise(rng, size, 8) - 0.3).clip(0)
    absorbed = np.array([0.45, 0.68, 0.75]) + rng.normal(0, 0.04, 3)
    return (1 - depth.clip(0.15, 1.15)[..., None] * absorbed).clip(0.05, 1)


# ------------------------------------------------------------------------------------- writing


def write_phantom(folder: Path, seed: int = 0, size: int = 256, progress: bool = True) -> None:
    """Write the whole set in the published layout, as RGB PNG files of size×size px.

    Every picture is a function of (seed, set, number). The set is made beside `folder` and
    renamed when whole; where another process was faster, its set stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f'.{folder.name}_', dir=folder.parent))
    try:
        with tqdm(total=sum(count for _, count, _, _ in SETS), desc='drawing the phantom data',
                  unit=' pictures', disable=not progress, mininterval=bar_interval()) as bar:
            for number, (name, count, diseased, label_folder) in enumerate(SETS):
                _write_set(temporary, name, count, diseased, label_folder,
                           lambda index: np.random.default_rng((seed, number, index)), size, bar)
        (temporary / 'README.txt').write_text(README.format(seed=seed, size=size))
        temporary.chmod(0o755)  # mkdtemp's folders are private
        try:
            temporary.rename(folder)
        except OSError:
            if not (folder / 'README.txt').is_file():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_set(root, name, count, diseased, label_folder, generator, size, bar):
    (root / name).mkdir(parents=True)
    if label_folder:
        (root / label_folder).mkdir(parents=True)

    def write(index):
        image, mask = draw_skin(generator(index), size, diseased)
        stem = f'{"disease" if diseased else "normal"}_{index + 1:04d}'
        Image.fromarray(image).save(root / name / f'{stem}.png', compress_level=1)
        if label_folder:
            Image.fromarray(mask).save(root / label_folder / f'{stem}_segmentation.png')

    for _ in ahead(write, range(count), cores()):
        bar.update()
