"""Folders of pictures to samples: layouts, reading, unpaired sampling, augmentation, loaders."""
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Optional

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm

import parallel
from utils import UserError, ahead, cores, to_unit_range

# Pillow warns at 90 million pixels and refuses at twice that; here its limit holds at once
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)

PICTURE_SUFFIXES = {'.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp', '.gif'}
LABEL_ENDING = '_segmentation'
LAYOUT = ('expected layout: trainA/ (disease) and trainB/ (normal) to train, testA/ to test; '
          'optional testB/, val/images/, and labels <image stem>_segmentation.png in test/labels/ '
          'and val/labels/ (testA/images/ with testA/labels/ is read too)')


# ------------------------------------------------------------------------------------- folders


@dataclass(frozen=True)
class Case:
    """One disease picture to segment, with its label where there is one."""

    name: str  # the file's stem
    picture: Path
    label: Optional[Path] = None


def check_data_folder(folder: Path) -> None:
    """Raises UserError, naming the data sets there are, where the data set's folder is missing."""
    if not folder.is_dir():
        there = sorted(path.name for path in folder.parent.glob('*') if path.is_dir())
        raise UserError(f'{folder}: no such folder; {folder.parent} holds '
                        f'{", ".join(there) or "no data set"}; {LAYOUT}')


class Problems:
    """Files of a data set that cannot be used, and why."""

    def __init__(self):
        self.reasons: dict[Path, str] = {}

    def add(self, path: Path, reason: str) -> None:
        self.reasons.setdefault(path, reason)

    def without(self, paths: list[Path]) -> list[Path]:
        return [path for path in paths if path not in self.reasons]

    @property
    def listing(self) -> str:
        """A line each."""
        return '\n'.join(f'  {path}: {reason}' for path, reason in self.reasons.items())

    def settle(self, skip: bool) -> None:
        """Where there are any: raises UserError with all of them, or with `skip` says how many."""
        if not self.reasons:
            return
        count = len(self.reasons)
        if skip:
            print(f'--skip_bad True: going on without {count} '
                  f'{"file" if count == 1 else "files"} that cannot be used:\n{self.listing}')
        elif count == 1:
            raise UserError(f'{self.listing.strip()}; or go on without it by --skip_bad True')
        else:
            raise UserError(f'{count} files cannot be used; mend or remove them, or go on without '
                            f'by --skip_bad True:\n{self.listing}')


def list_pictures(folder: Path, problems: Problems | None = None) -> list[Path]:
    """The pictures directly in `folder` (or in its `images`), by name; raises UserError.

    Hidden files, folders and files without a picture's ending are passed over. Of several with one
    name only the first counts: the others go to `problems`, and without them are an error.
    """
    folder = folder / 'images' if (folder / 'images').is_dir() else folder
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder; {LAYOUT}')
    try:
        paths = sorted(path for path in folder.iterdir()
                       if path.suffix.lower() in PICTURE_SUFFIXES
                       and not path.name.startswith('.') and not path.is_dir())
    except OSError as error:
        raise UserError(f'{folder}: cannot be listed: {error.strerror}') from error
    if not paths:
        raise UserError(f'{folder}: holds no pictures ({", ".join(sorted(PICTURE_SUFFIXES))}); '
                        f'{LAYOUT}')
    by_stem = {}
    for path in paths:
        if path.stem not in by_stem:
            by_stem[path.stem] = path
        elif problems is None:
            raise UserError(f'{folder}: several pictures are named {path.stem}; results are written '
                            'by that name, so rename one')
        else:
            problems.add(path, f'named as {by_stem[path.stem].name} is; rename one')
    return list(by_stem.values())


def training_pictures(data_folder: Path, problems: Problems | None = None) -> dict[str, list[Path]]:
    """Disease pictures under 'A' and normal ones under 'B'."""
    return {domain: list_pictures(data_folder / f'train{domain}', problems) for domain in 'AB'}


def find_cases(data_folder: Path, split: str, problems: Problems | None = None) -> list[Case]:
    """The disease pictures of `test` or `val` with their labels, by name; raises UserError.

    Labels are optional, but one that belongs to no picture goes to `problems`, and without them is
    an error.
    """
    if split == 'test':
        picture_folder = data_folder / 'testA'
        label_folders = [data_folder / 'test' / 'labels', picture_folder / 'labels']
    else:
        picture_folder = data_folder / 'val'
        label_folders = [picture_folder / 'labels']
    pictures = list_pictures(picture_folder, problems)
    label_folder = next((folder for folder in label_folders
                         if folder.is_dir() and any(folder.iterdir())), None)
    stems = {path.stem for path in pictures}
    labels = {}
    for path in list_pictures(label_folder, problems) if label_folder else []:
        stem, ending = path.stem[:-len(LABEL_ENDING)], path.stem[-len(LABEL_ENDING):]
        if ending.lower() != LABEL_ENDING:  # the archives write it with s and with S
            reason = f'labels are named <image stem>{LABEL_ENDING}.png; rename it'
        elif stem not in stems:
            reason = f'label without a picture: {picture_folder} has no {stem}'
        else:
            labels[stem] = path
            continue
        if problems is None:
            raise UserError(f'{path}: {reason}')
        problems.add(path, reason)
    return [Case(path.stem, path, labels.get(path.stem)) for path in pictures]


def validation_cases(data_folder: Path, problems: Problems | None = None) -> list[Case]:
    """The val pictures that have a label; none where there is no val folder."""
    if not (data_folder / 'val').is_dir():
        return []
    return [case for case in find_cases(data_folder, 'val', problems) if case.label]


# ------------------------------------------------------------------------------------- reading


def read_picture(path: Path, channels: int = 3) -> Image.Image:
    """An 8-bit picture with 3 (RGB) or 1 (grey) channels; raises UserError with the file's name.

    Transparent parts are laid on black. Pictures of more than 8 bits a channel, and floating
    point ones, are scaled by their own range; of several pages the first is read.
    The pixels stay as they are stored (a rotation noted in a camera file is not applied), so that
    masks lie on the stored pixels.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise ValueError(f'{image.width}×{image.height} pixels, above the limit of '
                                 f'{Image.MAX_IMAGE_PIXELS}')
            if image.mode.startswith(('I', 'F')):
                values = np.nan_to_num(np.asarray(image, np.float32))
                image = Image.fromarray(np.rint(to_unit_range(values) * 255).astype(np.uint8))
            elif 'A' in image.getbands() or 'transparency' in image.info:
                image = image.convert('RGBA')
                image = Image.alpha_composite(Image.new('RGBA', image.size, 'black'), image)
            return image.convert('RGB' if channels == 3 else 'L')
    except Exception as error:  # decoders of broken files raise anything
        raise UserError(f'{path}: cannot be read as a picture ({error or type(error).__name__}); '
                        'mend or remove it') from error


def read_label(path: Path) -> np.ndarray:
    """A label as a boolean mask H×W: above one half is lesion.

    One half of full scale, 255; of the larger value for labels of two values, as 0 and 1. Raises
    UserError where areas of a third value, more than blurred outlines, say neither.
    """
    values = np.asarray(read_picture(path, channels=1))
    most = int(values.max())
    if most > 127:
        between = ((values > 0.1 * most) & (values < 0.9 * most)).astype(np.uint8)
        if cv2.erode(between, np.ones((3, 3), np.uint8)).any():
            raise UserError(f'{path}: a label has two values, 0 and another, but this one also has '
                            'areas between; draw each kind of lesion as 255, or as 0')
        return values > 127.5
    if len(np.unique(values)) > 2:
        raise UserError(f'{path}: a label has two values, 0 and another, but this one has '
                        f'{len(np.unique(values))} up to {most}; draw each kind of lesion as 255, '
                        'or as 0')
    return values > most / 2


def check_pictures(paths: list[Path], problems: Problems, read: Callable = read_picture) -> None:
    """Decode every picture once; those that cannot be go to `problems`."""

    def problem(path):
        try:
            read(path)
        except UserError as error:
            return str(error).removeprefix(f'{path}: ')

    for path, reason in zip(paths, tqdm(ahead(problem, paths, cores()), 'checking pictures',
                                        len(paths), unit=' pictures', leave=False, delay=2)):
        if reason:
            problems.add(path, reason)


def check_cases(cases: list[Case], problems: Problems) -> list[Case]:
    """The cases whose picture can be read, with those labels that can, and are as large as their
    picture; what cannot goes to `problems`."""
    labels = {case.label for case in cases if case.label}
    check_pictures([case.picture for case in cases], problems)
    check_pictures(sorted(labels), problems, read_label)
    usable = []
    for case in cases:
        if case.picture in problems.reasons:
            continue
        if case.label and case.label not in problems.reasons:
            with Image.open(case.picture) as picture, Image.open(case.label) as label:
                if picture.size != label.size:
                    problems.add(case.label, '{}×{} px, but '.format(*label.size)
                                 + '{} is {}×{} px'.format(case.picture.name, *picture.size))
        usable.append(replace(case, label=None) if case.label in problems.reasons else case)
    return usable


# ------------------------------------------------------------------------------------- samples


def to_tensor(image: Image.Image) -> torch.Tensor:
    """channels×H×W float32 in [-1, 1].

    By numpy: threads that read ahead would each bring torch's own threads along, and these get
    into the way of training (a quarter slower on two cores).
    """
    values = np.asarray(image, np.float32) / 127.5 - 1
    values = values.transpose(2, 0, 1) if values.ndim == 3 else values[None]
    return torch.from_numpy(np.ascontiguousarray(values))


def stack(samples: list[torch.Tensor]) -> torch.Tensor:
    """A batch of them, put together by numpy for the same reason."""
    return torch.from_numpy(np.stack([sample.numpy() for sample in samples]))


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bicubic, to (height, width)."""
    return image.resize((size[1], size[0]), Image.Resampling.BICUBIC)


def margined(size: tuple[int, int]) -> tuple[int, int]:
    """The size that crops are taken out of."""
    return size[0] + 50, size[1] + 50


def augment(image: Image.Image, size: tuple[int, int], rng: np.random.Generator,
            contrast: bool = True) -> Image.Image:
    """The second generation's augmentation: flips, a crop of size out of size + 50, contrast.

    Both flips with probability ½, contrast times a number in [0.9, 1.1]. A mask that has to move
    with its picture goes through with an equal `rng` and without `contrast`.
    """
    image = resize(image, margined(size))
    if rng.random() < 0.5:
        image = transforms.hflip(image)
    if rng.random() < 0.5:
        image = transforms.vflip(image)
    top, left = rng.integers(0, 51, 2)
    image = transforms.crop(image, int(top), int(left), *size)
    return transforms.adjust_contrast(image, rng.uniform(0.9, 1.1)) if contrast else image


class TrainingPictures:
    """Decoded pictures at the size that training needs, kept in memory up to `cache_mb`.

    A set that fits is decoded once; of a larger one the pictures that came first stay.
    """

    def __init__(self, settings):
        self.settings = settings
        self.augments = settings.augment and settings.scheme == 'published'  # others do it themselves
        self.size = margined(settings.size) if self.augments else settings.size
        self.room = settings.cache_mb * 1e6
        self._kept = {}

    def read(self, path: Path, channels: int | None = None) -> Image.Image:
        """The picture with that many channels, by default those of the network's."""
        key = path, channels or self.settings.img_ch
        image = self._kept.get(key)
        if image is None:
            image = resize(read_picture(*key), self.size)
            needed = image.width * image.height * (4 if image.mode == 'RGB' else 1)  # in Pillow
            if needed <= self.room:
                self.room -= needed
                self._kept[key] = image
        return image


class UnpairedBatches:
    """Unpaired training batches {'A': …, 'B': …}, count×img_ch×H×W each, and with `masks` also
    {'mask': count×1×H×W in [-1, 1]}, the stage-1 masks of A.

    A batch is a function of (seed, iteration) alone, so any number of threads and a resumed run
    see the same ones; of several processes each has its part of it. Each domain goes through all
    its pictures in an order of its own, drawn anew every round.
    """

    def __init__(self, pictures: dict[str, list[Path]], settings, store: TrainingPictures,
                 masks: dict[str, Path] | None = None):
        self.pictures = pictures
        self.counts = batch_counts(settings)
        self.settings = settings
        self.store = store
        self.masks = masks
        self._order = lru_cache(8)(self._draw_order)

    def __getitem__(self, iteration: int) -> dict[str, torch.Tensor]:
        batch = {}
        for domain, count in self.counts.items():
            mine = range(count)
            if self.settings.scheme != 'locator':  # see locator.py
                mine = mine[parallel.my_part(count)]
            positions = [iteration * count + place for place in mine]
            paths = [self._path(domain, position) for position in positions]
            batch[domain] = self._stack(domain, paths, positions)
            if domain == 'A' and self.masks:
                batch['mask'] = self._stack(domain, [self.masks[path.stem] for path in paths],
                                            positions, of_masks=True)
        if torch.cuda.is_available():
            batch = {name: part.pin_memory() for name, part in batch.items()}
        return batch

    def _stack(self, domain, paths, positions, of_masks=False):
        settings = self.settings
        samples = []
        for path, position in zip(paths, positions):
            image = self.store.read(path, 1 if of_masks else None)
            if self.store.augments:
                rng = np.random.default_rng((settings.seed, ord(domain), position, 1))
                image = augment(image, settings.size, rng, contrast=not of_masks)
            samples.append(to_tensor(image))
        return stack(samples) if samples else torch.empty(0, settings.img_ch, *settings.size)

    def _path(self, domain, position):
        paths = self.pictures[domain]
        round_, place = divmod(position, len(paths))
        return paths[self._order(domain, round_)[place]]

    def _draw_order(self, domain, round_):
        rng = np.random.default_rng((self.settings.seed, ord(domain), round_, 0))
        return rng.permutation(len(self.pictures[domain]))


def batch_counts(settings) -> dict[str, int]:
    """Pictures of each domain in an iteration, over all processes."""
    normal = settings.normal_batch if settings.scheme == 'student' else settings.batch_size
    return {'A': settings.batch_size, 'B': normal}


def training_batches(pictures: dict[str, list[Path]], settings, start: int,
                     store: TrainingPictures, masks: dict[str, Path] | None = None
                     ) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of iterations start+1 … settings.iteration; `masks` by the stem of their picture."""
    batches = UnpairedBatches(pictures, settings, store, masks)
    return ahead(batches.__getitem__, range(start, settings.iteration), settings.num_workers)


def picture_batches(paths: list[Path], settings, batch_size: int,
                    masks: dict[str, Path] | None = None) -> Iterator[dict[str, torch.Tensor]]:
    """All pictures in order, at the network's size: {'image': B×img_ch×H×W} and with `masks`, by
    the pictures' stems, also {'mask': B×1×H×W in [-1, 1]}."""

    def read(path, channels):
        return to_tensor(resize(read_picture(path, channels), settings.size))

    def read_batch(some):
        batch = {'image': stack([read(path, settings.img_ch) for path in some])}
        if masks:
            batch['mask'] = stack([read(masks[path.stem], 1) for path in some])
        return batch

    parts = (paths[start:start + batch_size] for start in range(0, len(paths), batch_size))
    return ahead(read_batch, parts, settings.num_workers)
