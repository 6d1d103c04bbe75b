"""The data set that --phase prepare writes: its files, its split, prepare.json and the summary."""
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

import dataset
from config import OPTIONS, Config
from presets import PROFILE_OF
from runtime.files import TEXT, writing
from runtime.staging import digests
from runtime.targets import MAX_NAME
from runtime.threads import cpu_count, prefetch
from utils import UserError, progress_interval

SPLITS = ('train', 'val', 'test')
DEFAULT_SPLIT = {'brats': (563, 90, 90), 'isic': (200, 31, 31),  # published
                 'folders': (0.7, 0.15, 0.15)}  # ours
FRACTIONS = DEFAULT_SPLIT['folders']  # where there are too few images for the published counts
MUCH_LEFT_OUT = 1 / 3  # of the disease images, above which the last line tells
BROKEN = 'broken'
KEEPS = '--keep_artifacts True keeps those with artifacts'
WITHOUT_SEGMENTATION = 'without a segmentation'
LABEL_ALONE = 'labels without an image'
AS_SLICES = ('save axial slices as images (PNG), those with disease in one folder and those '
             'without in another, for --source_format folders')
ADVICE = {  # by reason, of images that might be used
    **dict.fromkeys(('ruler', 'color patch', 'dark corners'), KEEPS),
    BROKEN: 'the broken are listed below',
    'not needed for --split': 'fractions, as --split 0.7 0.15 0.15, take all that --split leaves',
    WITHOUT_SEGMENTATION: 'only volumes with a segmentation can be used'}
WITHOUT_NORMAL = {  # by format: why trainB is empty
    'brats': 'no slice at the heights of lesions is free of them; widen --z_range, or add volumes',
    'isic': 'no image of train shows a corner of plain skin; add images with smaller lesions, or '
            'bring normal images and use --source_format folders',
    'folders': 'no normal image can be used for training'}
FOLDERS = ('trainA', 'trainB', 'testA', 'testB', 'val/images', 'val/labels', 'test/labels')


class TooFewImages(UserError):
    """Fewer images than --split, or its default, counts."""


class DatasetWriter:
    """Writes a data set into `folder`, which has to be empty, and keeps account of it. Attributes:
    `split`, what --split says; `rng`, a function of --seed; `counts`, files by subfolder;
    `problems`, source files that are broken; `left_out`, source files that are sound but not used,
    with the reason; `normal`, source files of normal images, as far as known; `details`, what else
    prepare.json holds, by source format; `notes`, lines of the summary."""
    SURPLUS = 'not needed for --split'

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config = folder, config
        self.split = Split.from_config(config)
        self.rng = np.random.default_rng(config.seed % 2 ** 32)
        self.counts: Counter[str] = Counter()
        self.problems = dataset.Problems()
        self.normal: set[Path] = set()
        self.left_out: dict[Path, str] = {}
        self.details: dict[str, Any] = {}
        self.notes: list[str] = []
        for name in FOLDERS:
            (folder / name).mkdir(parents=True)

    def take_fractions(self) -> None:
        """In place of the published counts, for which there are too few images."""
        self.notes.append('too few disease images for the published split of '
                          f'{" ".join(map(str, self.split.shares))}: split by fractions, as '
                          f'--split {" ".join(map(str, FRACTIONS))} does')
        self.split = Split(FRACTIONS, False)

    def add(self, split: str, domain: str, name: str, image: Image.Image,
            label: np.ndarray | None = None) -> None:
        """Write an image of the network's size as PNG, and for val and test its label, bool H×W, if
        `domain` is A (disease), not B (normal). Raises UserError where the name is taken."""
        self._write('val/images' if split == 'val' else f'{split}{domain}', name, image)
        if label is not None and domain == 'A' and split != 'train':
            self._write(f'{split}/labels', f'{name}{dataset.LABEL_ENDING}',
                        Image.fromarray(label.astype(np.uint8) * 255))

    def can_be_named(self, path: Path, name: str) -> bool:
        """Whether an image and its label can have this name; if not, `path`, the source file,
        becomes one of `problems`."""
        fits = len(os.fsencode(f'{name}{dataset.LABEL_ENDING}.png')) <= MAX_NAME
        if not fits:
            self.problems.add(path, 'its name in the data set would be too long; rename it')
        return fits

    def _write(self, subfolder: str, name: str, image: Image.Image) -> None:
        path = self.folder / subfolder / f'{name}.png'
        with writing(self.config.data_folder / subfolder / path.name):
            if path.exists():
                raise UserError(f'two images would be named {subfolder}/{path.name}; rename one')
            image.save(path)
        self.counts[subfolder] += 1

    def process(self, function: Callable, items: list, description: str) -> Iterator:
        """(item, function(item)) of each item in order, computed by threads, with a progress bar. A
        file of a UserError, `path: reason`, becomes one of `problems`, and its result None."""

        def result_or_error(item: Any) -> Any:
            try:
                return function(item)
            except UserError as error:
                return error

        results = tqdm(prefetch(result_or_error, items, cpu_count()), description, len(items),
                       unit=' files', mininterval=progress_interval(), disable=not items)
        for item, result in zip(items, results, strict=True):
            if isinstance(result, UserError):
                path, _, reason = str(result).partition(': ')
                self.problems.add(Path(path), reason)
                result = None
            yield item, result

    def finish(self, sources: list[Path]) -> None:
        """Write prepare.json, remove empty subfolders. Raises UserError where there is nothing to
        train on, unless --split or a data set laid out as ours asks for a test alone."""
        counts = self.counts
        trains = self.split.shares[0] or counts['trainB']
        others = (f'; of others {AS_SLICES}'
                  if WITHOUT_SEGMENTATION in self.left_out.values() else '')
        for name, reason in (('trainA', ''), ('trainB', WITHOUT_NORMAL[self.config.source_format])):
            if not counts[name] and (trains or not counts['testA']):
                listing = f'\n{self.problems.listing}' if self.problems.reasons else ''
                raise UserError(f'{", ".join(map(str, sources))}: {name} would be empty, since '
                                f'{reason or "no disease image is left for it"}; '
                                f'{self.reasons()}{others}', listing)
        for name in (*FOLDERS, 'val', 'test'):  # empty ones would count as a mistake when read
            if not any((self.folder / name).iterdir()):
                (self.folder / name).rmdir()
        config = self.config
        settings = {'seed': config.seed, 'img_size': config.size, 'split': self.split.shares}
        if config.source_format == 'brats':
            settings |= {'modality': config.modality, 'z_range': config.z_range or 'default',
                         'lesion_px': config.lesion_px}
        unused = self.left_out | self.problems.reasons
        content = {'source_format': config.source_format,
                   'sources': [str(source) for source in sources], 'settings': settings,
                   'counts': {name: self.counts[name] for name in FOLDERS}, **self.details,
                   'left_out': {str(path): reason for path, reason in sorted(unused.items())}}
        content['files'] = digests(self.folder) | {'prepare.json': digest_of_text(content)}
        text = json.dumps(content, indent=2, ensure_ascii=False)
        with writing(config.data_folder / 'prepare.json'):
            (self.folder / 'prepare.json').write_text(f'{text}\n', **TEXT)

    def summary(self) -> str:
        """Counts, what was left out, the command that trains on the data set, and what is wrong
        with it."""
        config = self.config
        counts = ', '.join(f'{self.counts[name]} {name}' for name in FOLDERS if self.counts[name])
        flags = f' --dataset {config.dataset}'
        is_dermoscopy = config.source_format == 'isic' or config.profile == 'dermoscopy'
        if is_dermoscopy and PROFILE_OF.get(config.dataset) != 'dermoscopy':
            flags += ' --profile dermoscopy'
        if Path(config.data_root) != Path(OPTIONS['data_root'].default):
            flags += f' --data_root {config.data_root}'
        left_out = [f'{self.reasons()} (listed in prepare.json)'] if self.left_out else []
        return '\n'.join([f'{config.data_folder}: {counts}', *self.notes, *left_out,
                          f'next: python main.py --phase train{flags}', *self._warnings()])

    def reasons(self) -> str:
        """How many files were left out for which reason, and what keeps them."""
        reasons = Counter(', '.join(self.left_out.values()).split(', ') if self.left_out else ())
        if self.problems.reasons:
            reasons[BROKEN] = len(self.problems.reasons)
        counts = [f'{count} {reason}' for reason, count in reasons.most_common()]
        advice = dict.fromkeys(ADVICE[reason] for reason, _ in reasons.most_common()
                               if reason in ADVICE)
        return '; '.join([f'left out: {", ".join(counts) or "no file"}', *advice])

    def _warnings(self) -> list[str]:
        """What training would refuse; and, last, that much was left out."""
        config, lines = self.config, []
        least = {stage: replace(config, phase='train', stage=stage, img_size=256).smallest_size
                 for stage in (2, 1)}
        if min(config.size) < max(least.values()):
            lines.append(f'--img_size {config.img_size}: training with this --img_size needs at '
                         f'least {least[2]}, label transfer (--stage 1) {least[1]} px')
        images = sum(count for name, count in self.counts.items()
                     if name in ('trainA', 'testA', 'val/images'))
        unused = sum(any(part in ADVICE for part in reason.split(', '))
                     for path, reason in self.left_out.items() if path not in self.normal)
        unused += len(self.problems.reasons.keys() - self.normal)
        if unused > (images + unused) * MUCH_LEFT_OUT:
            lines.append(f'only {images} of {images + unused} disease images are used; '
                         f'{self.reasons()}')
        return lines


def digest_of_text(content: dict[str, Any]) -> str:
    """A digest of prepare.json without its entry `files`, which keeps it."""
    text = json.dumps(json.loads(json.dumps(content)), indent=2)
    return hashlib.sha256(text.encode('ascii')).hexdigest()


def read_pair(image_path: Path, label_path: Path | None) -> tuple[Image.Image, np.ndarray | None]:
    """An image (RGB) and its label, bool H×W; raises UserError where they are not of one size."""
    image = dataset.read_image(image_path)
    return image, label_path and dataset.read_label(label_path, image_path)


def resize_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """At (height, width), bicubic; an image of that size keeps its pixels."""
    return image if image.size == size[::-1] else dataset.resize(image, size)


def resize_label(label: np.ndarray | None, size: tuple[int, int]) -> np.ndarray | None:
    """A label, bool H×W, at (height, width): bilinear, then cut at one half; None stays None."""
    if label is None or label.shape == size:
        return label
    gray = Image.fromarray(label.astype(np.uint8) * 255)
    return np.asarray(gray.resize(size[::-1], Image.Resampling.BILINEAR)) > 127


class Split(NamedTuple):
    """How many disease images go to train, val and test."""

    shares: tuple  # three counts, or three fractions
    counted: bool  # whether they are counts

    @classmethod
    def from_config(cls, config: Config) -> 'Split':
        """What --split says; raises UserError where that is neither counts nor fractions."""
        values = config.split or DEFAULT_SPLIT[config.source_format]
        error = UserError(f'--split {" ".join(map(str, values))}: three counts of train, val and '
                          'test, as 200 31 31, or three fractions of at most 1 together, as 0.7 '
                          '0.15 0.15')
        try:
            shares = tuple(float(value) for value in values)
        except ValueError:
            raise error from None
        if len(shares) != 3 or not all(0 <= share < 1e9 for share in shares) or not sum(shares):
            raise error
        if sum(shares) <= 1 + 1e-9:
            return cls(shares, False)
        if any(share % 1 for share in shares):
            raise error
        return cls(tuple(int(share) for share in shares), True)

    def sizes(self, total: int) -> dict[str, int]:
        """Images of each split, of `total`."""
        if self.counted:
            return dict(zip(SPLITS, self.shares, strict=True))
        ends = [round(sum(self.shares[:count]) * total) for count in range(4)]
        return {name: ends[number + 1] - ends[number] for number, name in enumerate(SPLITS)}

    def check(self, available: dict[str, int], description: str) -> None:
        """Raises TooFewImages where fewer are available for a split than --split counts."""
        needed = dict(zip(SPLITS, self.shares, strict=True))
        if self.counted and any(available[name] < needed[name] for name in SPLITS):
            counts = ', '.join(f'{available[name]} for {name}' for name in SPLITS)
            raise TooFewImages(f'--split {" ".join(map(str, self.shares))}: there are only '
                               f'{counts} {description}; ask for fewer, or give fractions, as 0.7 '
                               '0.15 0.15')


class SplitFiller:
    """Assigns images to splits, in the order of `names`: random, those with a label first. Labeled
    images fill test and val, then train; if none has a label, test takes any, and val none. Where
    --split gives fractions, all fill up evenly, so that images left out are missed by all. Raises
    TooFewImages where the default counts are more than there are."""

    def __init__(self, writer: DatasetWriter, names: list[str], labels: dict[str, Path]) -> None:
        self.writer, self.labeled = writer, len(labels)
        self.names = [str(name) for name in writer.rng.permutation(sorted(names))]
        self.names.sort(key=lambda name: name not in labels)
        self.sizes = writer.split.sizes(len(names))
        if not writer.config.split and writer.split.counted and (
                len(names) < sum(self.sizes.values())
                or labels and len(labels) < self.sizes['val'] + self.sizes['test']):
            raise TooFewImages('fewer images than the default --split counts')
        if not labels:
            if not writer.split.counted:
                self.sizes['train'] += self.sizes['val']
            self.sizes['val'] = 0
        self.filled: Counter[str] = Counter()

    def next_split(self, has_label: bool) -> str | None:
        """The split that the next image goes to; None when all are full."""
        names = ('test', 'val', 'train') if has_label or not self.labeled else ('train',)
        goals = dict(self.sizes)
        if has_label:
            goals['train'] = max(0, self.labeled - goals['test'] - goals['val'])
        names = ([name for name in names if self.filled[name] < goals[name]]
                 or [name for name in names if self.filled[name] < self.sizes[name]])
        if not names:
            return None
        chosen = names[0] if self.writer.split.counted else min(
            names, key=lambda name: self.filled[name] / self.sizes[name])
        self.filled[chosen] += 1
        return chosen

    def check(self) -> None:
        """Raises TooFewImages where there were fewer than --split counts."""
        writer, split = self.writer, self.writer.split
        if not self.labeled and split.shares[1]:
            print('no image has a label, so val, which chooses by labels, stays empty')
            self.filled['val'] = split.shares[1]
        try:
            split.check(self.filled, f'(val and test take labeled images; {writer.reasons()})')
        except TooFewImages as error:
            error.listing = f'\n{writer.problems.listing}' * bool(writer.problems.reasons)
            raise
