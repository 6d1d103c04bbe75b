"""Folders of images to samples: layouts, reading, checking, unpaired batches."""
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import shortcuts
from config import Config
from image_files import (
    DICOM_SUFFIXES,
    IMAGE_SUFFIXES,
    THUMBNAIL_FOLDERS,
    counted,
    no_images,
    read_image,
    read_label,
)
from runtime import distributed
from runtime.files import find_files, is_broken_link, is_file_or_broken_link
from runtime.threads import cpu_count, prefetch
from utils import UserError, printable, similar_word

LABEL_ENDING = '_segmentation'
BROKEN_LINK = 'a link that leads nowhere'
LAYOUT = ('expected layout: trainA/ (disease) and trainB/ (normal) to train, testA/ to test; '
          'optional testB/, val/images/, and labels <image stem>_segmentation.png in test/labels/ '
          'and val/labels/ (testA/images/ with testA/labels/, and test/images/, are read too)')


@dataclass(frozen=True)
class Case:
    """One disease image to segment, and its label if it has one."""
    name: str  # the file's stem
    image: Path
    label: Path | None = None


class Problems:
    """Files of a data set that cannot be used, and why; `left_out` are sound ones that are no
    images (see image_files.no_images)."""

    def __init__(self) -> None:
        self.reasons: dict[Path, str] = {}
        self.left_out: dict[Path, str] = {}
        self.subfolders: dict[Path, str] = {}  # of a folder that has some: what is said of them

    def add_subfolders(self, folder: Path, entries: Iterable[Path]) -> None:
        """Note those entries of a folder that are folders, which are not looked into."""
        known = {'labels', *THUMBNAIL_FOLDERS}
        count = sum(os.path.isdir(path) and path.name.lower() not in known for path in entries)
        if count:
            self.subfolders[folder] = (
                f'{count} subfolder{"s are" if count > 1 else " is"} not looked into; move the '
                'images up, or use --phase prepare')

    def add(self, path: Path, reason: str) -> None:
        self.reasons.setdefault(path, reason)

    def try_to_read(self, path: Path, read: Callable[[Path], Any]) -> Any:
        """read(path); None where it raises UserError, whose reason is added."""
        try:
            return read(path)
        except UserError as error:
            self.add(path, str(error).removeprefix(f'{path}: '))
            return None

    def without_broken_links(self, paths: list[Path]) -> list[Path]:
        """The paths without links that lead nowhere, of which one line tells."""
        broken = sorted(filter(is_broken_link, paths))
        if broken:
            others = f', like {len(broken) - 1} more' if len(broken) > 1 else ''
            self.add(broken[0], f'{BROKEN_LINK}{others}; fetch what it names')
        return sorted(set(paths) - set(broken))

    def without(self, paths: list[Path]) -> list[Path]:
        """The paths that have no problem."""
        return [path for path in paths if path not in self.reasons]

    @property
    def listing(self) -> str:
        """One line for each file."""
        return '\n'.join(printable(f'  {path}: {reason}')
                         for path, reason in self.reasons.items())

    def settle(self, skip: bool) -> None:
        """Before training, if there are any: raises UserError naming all, or with `skip` prints."""
        self._print_left_out()
        if not self.reasons:
            return
        count = len(self.reasons)
        if skip:
            print(f'--skip_bad True: going on without {count} '
                  f'{"file" if count == 1 else "files"} that cannot be used:\n{self.listing}')
        elif count == 1:
            raise UserError(f'{self.listing.strip()}; or go on without it by --skip_bad True')
        else:
            raise UserError(f'{count} files cannot be used; repair or remove them, or go on '
                            'without by --skip_bad True:', f'\n{self.listing}')

    def report(self) -> int:
        """After a phase that did the rest: print them to stderr; returns the exit code."""
        self._print_left_out()
        if self.reasons:
            print(f'left out, since they cannot be used:\n{self.listing}', file=sys.stderr)
        return 1 if self.reasons else 0

    def _print_left_out(self) -> None:
        if self.left_out:
            print(printable(f'left out: {counted(self.left_out)}'))
        for folder, text in self.subfolders.items():
            print(printable(f'{folder}: {text}'))


def check_data_folder(folder: Path) -> None:
    """Raises UserError, naming the existing data sets, where the data set's folder is missing."""
    if not folder.is_dir():
        names = sorted(path.name for path in folder.parent.glob('*') if path.is_dir())
        alike = similar_word(folder.name, names)
        hint = f'did you mean --dataset {alike}? ' if alike else ''
        raise UserError(f'{folder}: no such folder; {hint}{folder.parent} holds '
                        f'{", ".join(names) or "no data set"}; {LAYOUT}')


def list_images(folder: Path, problems: Problems | None = None,
                are_masks: bool = False) -> list[Path]:
    """The images (or `are_masks`) directly in `folder` or its subfolder `images`, by name; masks
    and DICOM beside images are left out, subfolders counted. Of several of one stem the first
    counts; others and broken links go to `problems`, or without are an error. Raises UserError."""
    folder = folder / 'images' if (folder / 'images').is_dir() else folder
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder; {LAYOUT}')
    suffixes, found = IMAGE_SUFFIXES | DICOM_SUFFIXES, problems or Problems()
    try:
        entries = [path for path in folder.iterdir() if not path.name.startswith('.')]
    except OSError as error:
        raise UserError(f'{folder}: cannot be listed: {error.strerror}') from error
    entries = found.without_broken_links(entries)
    if problems is None and found.reasons:
        raise UserError(found.listing.strip())
    paths = [path for path in entries
             if path.suffix.lower() in suffixes and is_file_or_broken_link(path)]
    found.add_subfolders(folder, set(entries) - set(paths))
    left_out = no_images(folder, paths, are_masks)
    paths = [path for path in paths if path not in left_out]
    found.left_out |= left_out
    if not paths:
        raise UserError(f'{folder}: {nothing_found(folder, left_out, found)}; {LAYOUT}')
    by_stem = {}
    for path in paths:
        if path.stem not in by_stem:
            by_stem[path.stem] = path
        elif problems is None:
            raise UserError(f'{folder}: several images are named {path.stem}; results are written '
                            'by that name, so rename one')
        else:
            problems.add(path, f'has the same name as {by_stem[path.stem].name}; rename one')
    return list(by_stem.values())


def find_images(folder: Path, problems: Problems, are_masks: bool = False
                ) -> tuple[list[Path], dict[Path, str]]:
    """All images (or `are_masks`) in a folder and its subfolders, sorted by path, and what is left
    out beside them, with the reason; hidden files are skipped, broken links go to `problems`."""
    paths = problems.without_broken_links(find_files(folder, IMAGE_SUFFIXES | DICOM_SUFFIXES))
    left_out = no_images(folder, paths, are_masks)
    return [path for path in paths if path not in left_out], left_out


def nothing_found(folder: Path, left_out: dict[Path, str],
                  problems: Problems | None = None) -> str:
    """What is said, after its name, of a folder without images but for what is left out."""
    what = [counted(left_out)] if left_out else []
    what += [problems.subfolders[folder]] if problems and folder in problems.subfolders else []
    what += [f'{path}: {reason}' for path, reason in (problems.reasons if problems else {}).items()
             if folder in path.parents][:1]
    advice = '; if those are images, rename them' if left_out else ''
    return (f'holds no images ({", ".join(sorted(IMAGE_SUFFIXES))})'
            + (f' but {", ".join(what)}{advice}' if what else ''))


def training_images(data_folder: Path, problems: Problems | None = None) -> dict[str, list[Path]]:
    """Disease images under 'A' and normal ones under 'B'; raises UserError as list_images does."""
    return {domain: list_images(data_folder / f'train{domain}', problems) for domain in 'AB'}


def contents(paths: list[Path]) -> dict[str, str]:
    """Size in bytes and a hash of what each file holds, by the file's name: of images that were
    replaced under the same names it differs. '' for a file that cannot be read."""
    def content(path: Path) -> str:
        try:
            data = path.read_bytes()
        except OSError:
            return ''
        return f'{len(data)} {hashlib.blake2b(data, digest_size=8).hexdigest()}'

    return dict(zip([path.name for path in paths], prefetch(content, paths, cpu_count()),
                    strict=True))


def training_contents(data_folder: Path) -> dict[str, str]:
    """As `contents`, of all training images, by `trainA/<name>` and `trainB/<name>`."""
    images = training_images(data_folder, Problems())
    return {f'train{domain}/{name}': content for domain, paths in images.items()
            for name, content in contents(paths).items()}


def case_folder(data_folder: Path, split: str) -> Path:
    """Where the disease images of `test` or `val` are: testA (or test, with subfolder images), or
    val."""
    test_images = not (data_folder / 'testA').is_dir() and (data_folder / 'test/images').is_dir()
    return data_folder / ('testA' if split == 'test' and not test_images else split)


def find_cases(data_folder: Path, split: str, problems: Problems | None = None) -> list[Case]:
    """The disease images of `test` or `val` with their labels, by name; raises UserError. Labels
    are optional, but one without an image goes to `problems`, and without these is an error."""
    image_folder = case_folder(data_folder, split)
    label_folders = [data_folder / split / 'labels', image_folder / 'labels']
    images = list_images(image_folder, problems)
    label_folder = next((folder for folder in label_folders
                         if folder.is_dir() and any(folder.iterdir())), None)
    stems = {path.stem for path in images}
    labels = {}
    for path in list_images(label_folder, problems, True) if label_folder else []:
        stem, ending = path.stem[:-len(LABEL_ENDING)], path.stem[-len(LABEL_ENDING):]
        if ending.lower() != LABEL_ENDING:  # the archives write it with s and with S
            reason = f'labels are named <image stem>{LABEL_ENDING}.png; rename it'
        elif stem in labels:
            reason = f'a label of the same image as {labels[stem].name}; remove one'
        elif stem not in stems:
            reason = f'label without an image: {image_folder} has no {stem}'
        else:
            labels[stem] = path
            continue
        if problems is None:
            raise UserError(f'{path}: {reason}')
        problems.add(path, reason)
    return [Case(path.stem, path, labels.get(path.stem)) for path in images]


def validation_cases(data_folder: Path, problems: Problems | None = None) -> list[Case]:
    """The val images that have a label; none where there is no val folder."""
    if not (data_folder / 'val').is_dir():
        return []
    return [case for case in find_cases(data_folder, 'val', problems) if case.label]


def check_images(paths: list[Path], problems: Problems,
                 read: Callable[[Path], Any] = read_image) -> None:
    """Decode every image once; those that cannot be decoded go to `problems`."""
    def problem(path: Path) -> str:
        try:
            read(path)
        except UserError as error:
            return str(error).removeprefix(f'{path}: ')
        return ''

    reasons = tqdm(prefetch(problem, paths, cpu_count()), 'checking images', len(paths),
                   unit=' images', leave=False, delay=2)
    for path, reason in zip(paths, reasons, strict=True):
        if reason:
            problems.add(path, reason)


def check_cases(cases: list[Case], problems: Problems) -> list[Case]:
    """The cases whose image can be read, without those labels that cannot be read or have another
    size than their image; what cannot be used goes to `problems`."""
    check_images([case.image for case in cases], problems)
    image_of = {case.label: None if case.image in problems.reasons else case.image
                for case in cases if case.label}
    check_images(sorted(image_of), problems, lambda path: read_label(path, image_of[path]))
    return [replace(case, label=None) if case.label in problems.reasons else case
            for case in cases if case.image not in problems.reasons]


def checked_val_cases(config: Config, problems: Problems) -> list[Case]:
    """The val images that have a label and can be used; what cannot goes to `problems`."""
    cases = check_cases(validation_cases(config.data_folder, problems), problems)
    return [case for case in cases if case.label]


def checked_training_data(
        config: Config, store: 'ImageStore') -> tuple[dict[str, list[Path]], list[Case]]:
    """Training images by domain, and labeled val cases, that can be read; see Problems.settle.
    Tells where something other than disease distinguishes the folders."""
    problems, appearances = Problems(), {}
    images = training_images(config.data_folder, problems)

    def read(path: Path) -> None:
        appearances[path] = shortcuts.appearance_of(path, store.read(path))

    check_images(images['A'] + images['B'], problems, read)
    val_cases = checked_val_cases(config, problems)
    problems.settle(config.skip_bad)
    images = {domain: problems.without(paths) for domain, paths in images.items()}
    for domain, paths in images.items():
        if not paths:
            raise UserError(f'{config.data_folder}/train{domain}: not one image can be used')
    if config.stage == 0 or config.method == 'label_transfer' and not config.trained_by_localizer:
        for line in shortcuts.warnings({domain: {path: appearances[path] for path in paths}
                                        for domain, paths in images.items()}, config):
            print(printable(line))  # by the first stage alone: the others learn from it
    return images, val_cases


def to_tensor(image: Image.Image) -> Tensor:
    """channels×H×W float32 in [-1, 1]. By numpy: threads that read ahead would each bring torch's
    own threads along, and these slow training down (by a quarter on two cores)."""
    values = np.asarray(image, np.float32) / 127.5 - 1
    values = values.transpose(2, 0, 1) if values.ndim == 3 else values[None]
    return torch.from_numpy(np.ascontiguousarray(values))


def stack(samples: list[Tensor]) -> Tensor:
    """A batch of samples, put together by numpy for the same reason."""
    return torch.from_numpy(np.stack([sample.numpy() for sample in samples]))


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bicubic, to (height, width)."""
    return image.resize((size[1], size[0]), Image.Resampling.BICUBIC)


class ImageStore:
    """Decoded training images at one size (height, width), the network's or a larger one that
    augmentation crops. They are kept in memory up to `cache_mb`; those that came first stay."""

    def __init__(self, config: Config, size: tuple[int, int]) -> None:
        self.img_ch, self.size = config.img_ch, size
        self.free_bytes = config.cache_mb * 1e6
        self._cache = {}

    def read(self, path: Path, channels: int | None = None) -> Image.Image:
        """The image with that many channels (None: those of the network); raises UserError."""
        key = path, channels or self.img_ch
        image = self._cache.get(key)
        if image is None:
            image = resize(read_image(*key), self.size)
            needed = image.width * image.height * (4 if image.mode == 'RGB' else 1)  # in Pillow
            if needed <= self.free_bytes:
                self.free_bytes -= needed
                self._cache[key] = image
        return image


def training_batches(images: dict[str, list[Path]], config: Config, start: int, store: ImageStore,
                     soft_masks: dict[str, Path] | None = None,
                     augment: Callable[[Image.Image, np.random.Generator, bool], Image.Image]
                     | None = None, sharded: bool = True) -> Iterator[dict[str, Tensor]]:
    """Unpaired batches {'A': …, 'B': …}, count×img_ch×H×W each in [-1, 1], of iterations start+1 …
    config.iteration; with `soft_masks`, files by the stems of A's images, also 'mask', count×1×H×W.
    A batch is a function of (seed, iteration) alone, so any number of threads and a resumed run see
    the same; of several processes each has its part (`sharded`) or all. A domain goes through all
    its images in an order drawn anew every round. `augment(image, rng, is_mask)` makes an image of
    the store's size one of the network's; an image and its mask come with equal random numbers."""
    @lru_cache(8)
    def in_order(domain: str, round_number: int) -> list[Path]:
        rng = np.random.default_rng((config.seed, ord(domain), round_number, 0))
        return [images[domain][place] for place in rng.permutation(len(images[domain]))]

    def read_all(domain: str, paths: list[Path], positions: list[int],
                 channels: int | None = None) -> Tensor:
        samples = []
        for path, position in zip(paths, positions, strict=True):
            image = store.read(path, channels)
            if augment:
                rng = np.random.default_rng((config.seed, ord(domain), position, 1))
                image = augment(image, rng, channels == 1)
            samples.append(to_tensor(image))
        return stack(samples) if samples else torch.empty(0, config.img_ch, *config.size)

    def read_batch(iteration: int) -> dict[str, Tensor]:
        batch = {}
        for domain, count in config.batch_counts.items():
            places = range(count)[distributed.shard_slice(count) if sharded else slice(None)]
            positions, size = [iteration * count + place for place in places], len(images[domain])
            paths = [in_order(domain, position // size)[position % size] for position in positions]
            batch[domain] = read_all(domain, paths, positions)
            if domain == 'A' and soft_masks:
                mask_paths = [soft_masks[path.stem] for path in paths]
                batch['mask'] = read_all(domain, mask_paths, positions, channels=1)
        if config.device != 'cpu' and torch.cuda.is_available():
            batch = {name: part.pin_memory() for name, part in batch.items()}
        return batch

    return prefetch(read_batch, range(start, config.iteration), config.num_workers)


def image_batches(paths: list[Path], config: Config, batch_size: int,
                  soft_masks: dict[str, Path] | None = None) -> Iterator[dict[str, Tensor]]:
    """All images in order, at the network's size: {'image': B×img_ch×H×W in [-1, 1]} and with
    `soft_masks`, files by the images' stems, also {'mask': B×1×H×W in [-1, 1]}."""
    def read(path: Path, channels: int) -> Tensor:
        return to_tensor(resize(read_image(path, channels), config.size))

    def read_batch(batch_paths: list[Path]) -> dict[str, Tensor]:
        batch = {'image': stack([read(path, config.img_ch) for path in batch_paths])}
        if soft_masks:
            batch['mask'] = stack([read(soft_masks[path.stem], 1) for path in batch_paths])
        return batch

    parts = (paths[start:start + batch_size] for start in range(0, len(paths), batch_size))
    return prefetch(read_batch, parts, config.num_workers)
