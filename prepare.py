"""--phase prepare: a data set folder (trainA, trainB, testA, …) of what people download.

Three formats: `brats` (trees of NIfTI volumes with segmentations), `isic` (dermoscopy pictures with or
without segmentations) and `folders` (any folders of pictures). Labels are prepared for val and test only.
The folder appears when it is whole; prepare.json in it says what it was made of.
"""
import json
import re
import shutil
import sys
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

import artefacts
import dataset
import volumes
from utils import UserError, ahead, bar_interval, cores, make_folder

SPLITS = ('train', 'val', 'test')
DEFAULT_SPLIT = {'brats': (563, 90, 90), 'isic': (200, 31, 31),  # published
                 'folders': (0.7, 0.15, 0.15)}  # ours
BEYOND = 'not needed for --split'
ENOUGH_HEAD = 0.2  # ours: of the square around the head; slices with less are not taken
TIME_POINT = re.compile(r'(BraTS-\w+-\d+)-\d{3}', re.I)  # since BraTS 2023 a patient may come again
ISIC = re.compile(r'(?P<name>ISIC_\d+)(_downsampled)?(?P<label>_segmentation)?', re.I)
FOLDERS = ('trainA', 'trainB', 'testA', 'testB', 'val/images', 'val/labels', 'test/labels')


def run(settings) -> int:
    """Make `settings.data_folder`; the exit code, 1 where files had to be left out because they are
    broken. Raises UserError."""
    sources = check_sources(settings)
    folder = settings.data_folder
    part, old = (folder.with_name(f'.{folder.name}.{state}') for state in ('part', 'old'))

    def clean_up():
        if old.exists() and not folder.exists():  # ended between the two renamings below
            old.rename(folder)
        for leftover in (part, old):
            shutil.rmtree(leftover, ignore_errors=True)

    clean_up()
    check_target(settings)
    make_folder(folder.parent, '--data_root')
    try:
        made = DataSet(part, settings)
        {'brats': from_brats, 'isic': from_isic, 'folders': from_folders}[settings.source_format](
            made, sources)
        made.describe(sources)
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
    finally:
        clean_up()
    print(made.summary())
    if made.problems.reasons:
        print(f'left out, since they cannot be used:\n{made.problems.listing}', file=sys.stderr)
        return 1
    return 0


def check_sources(settings) -> list[Path]:
    """The folders to read; raises UserError where they, or the name of what is made, cannot be."""
    formats = ', '.join(DEFAULT_SPLIT)
    if settings.source_format not in DEFAULT_SPLIT:
        raise UserError(f'--source_format: --phase prepare needs to know what --source holds: {formats}')
    if not settings.source:
        raise UserError('--source: --phase prepare needs the folder that holds what was downloaded')
    if settings.dataset == 'phantom':
        raise UserError('--dataset: --phase prepare needs a name for what it makes, other than phantom, '
                        'which is built in')
    if Path(settings.dataset).name != settings.dataset or settings.dataset.startswith('.'):
        raise UserError(f'--dataset {settings.dataset}: the name of a folder, not a path; '
                        '--data_root says where it goes')
    sources, folder = [Path(source) for source in settings.source], settings.data_folder
    for source in sources:
        if not source.is_dir():
            archive = source.name.lower().endswith(('.zip', '.tar', '.gz', '.tgz', '.7z'))
            raise UserError(f'--source {source}: ' + (
                'an archive; unpack it, and give the folder' if source.is_file() and archive
                else 'a file; give the folder that holds it' if source.is_file()
                else 'no such folder'))
        inside, outside = source.resolve(), folder.resolve()
        if inside == outside or inside in outside.parents or outside in inside.parents:
            raise UserError(f'--source {source} and {folder}, which would be made, lie in one another; '
                            'choose another place with --data_root')
    for number, source in enumerate(sources):
        if source.resolve() in [other.resolve() for other in sources[:number]]:
            raise UserError(f'--source {source}: given twice')
    return sources


def check_target(settings) -> None:
    """Raises UserError where something is there that must stay."""
    folder, another = settings.data_folder, 'choose another --dataset or --data_root'
    if folder.is_symlink() or folder.exists() and not folder.is_dir():
        raise UserError(f'{folder}: there already, and no folder; {another}')
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / 'prepare.json').is_file():
        raise UserError(f'{folder}: there already, and not made by --phase prepare, so it stays; {another}')
    if not settings.overwrite:
        raise UserError(f'{folder}: there already; --overwrite True replaces it, or {another}')
    try:
        made = json.loads((folder / 'prepare.json').read_text('utf-8'))['files']
        strangers = sorted(set(files_of(folder)) - set(made))
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f'{folder}/prepare.json: damaged, so nothing says what else lies there, and it stays; '
                        f'{another}') from None
    if strangers:
        raise UserError(f'{folder}: holds {len(strangers)} file{"s" * (len(strangers) > 1)} that --phase '
                        f'prepare did not make, as {strangers[0]}; move them away, or {another}')


def files_of(folder: Path) -> list[str]:
    """What lies in a data set, but prepare.json, as paths in it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*')
                  if not path.is_dir() and path != folder / 'prepare.json')


# ------------------------------------------------------------------------------------ what is made


class DataSet:
    """The folder that grows, and what prepare.json says of it."""

    def __init__(self, folder: Path, settings):
        self.folder, self.settings = folder, settings
        self.split = Split.of(settings)
        self.rng = np.random.default_rng(settings.seed % 2 ** 32)
        self.counts = Counter()
        self.problems = dataset.Problems()  # files that should have been good
        self.left_out = {}  # files that are sound but not wanted -> why
        self.extra = {}  # of prepare.json, by format
        for name in FOLDERS:
            (folder / name).mkdir(parents=True)

    def add(self, split: str, domain: str, name: str, picture: Image.Image,
            label: np.ndarray | None = None) -> None:
        """A picture of the right size; its label, bool H×W, is written for val and test alone."""
        self._write('val/images' if split == 'val' else f'{split}{domain}', name, picture)
        if label is not None and domain == 'A' and split != 'train':
            self._write(f'{split}/labels', f'{name}{dataset.LABEL_ENDING}',
                        Image.fromarray(label.astype(np.uint8) * 255))

    def _write(self, place, name, image):
        path = self.folder / place / f'{name}.png'
        if path.exists():
            raise UserError(f'two pictures would be named {place}/{path.name}; rename one of them')
        image.save(path)
        self.counts[place] += 1

    def progress(self, function: Callable, items: list, what: str) -> Iterator:
        """function(item) of each item in order, by threads, with a bar. Files that cannot be used,
        which the function tells by UserError, become problems and None."""

        def checked(item):
            try:
                return function(item)
            except UserError as error:
                return error

        bar = tqdm(ahead(checked, items, cores()), what, len(items), unit=' files',
                   mininterval=bar_interval())
        for result in bar:
            if isinstance(result, UserError):
                path, _, reason = str(result).partition(': ')
                self.problems.add(Path(path), reason)
                result = None
            yield result

    def describe(self, sources: list[Path]) -> None:
        """Write prepare.json; raises UserError where nothing was made."""
        if not self.counts['trainA'] + self.counts['testA']:
            raise UserError(f'{", ".join(map(str, sources))}: nothing could be made of it; '
                            + self._reasons() + (f'\n{self.problems.listing}'
                                                 if self.problems.reasons else ''))
        for name in FOLDERS:  # an empty one would be taken for a mistake
            if not self.counts[name]:
                (self.folder / name).rmdir()
        for name in ('val', 'test'):
            if not any((self.folder / name).iterdir()):
                (self.folder / name).rmdir()
        settings, form = self.settings, self.settings.source_format
        used = {'seed': settings.seed, 'img_size': list(settings.size), 'split': list(self.split.shares)}
        if form == 'brats':
            used |= {name: getattr(settings, name) for name in ('modality', 'z_range', 'lesion_px')}
        text = {'source_format': form, 'sources': [str(source) for source in sources], 'settings': used,
                'counts': {name: self.counts[name] for name in FOLDERS}, **self.extra,
                'left_out': {str(path): reason for path, reason in
                             (self.left_out | self.problems.reasons).items()},
                'files': files_of(self.folder)}
        (self.folder / 'prepare.json').write_text(json.dumps(text, indent=2, ensure_ascii=False) + '\n',
                                                  encoding='utf-8')

    def summary(self) -> str:
        """What was made, for people."""
        settings = self.settings
        made = ', '.join(f'{self.counts[name]} {name}' for name in FOLDERS if self.counts[name])
        place = '' if Path(settings.data_root) == Path(type(settings).data_root) \
            else f' --data_root {settings.data_root}'
        dermoscopy = settings.source_format == 'isic' and settings.dataset != 'ISIC'
        preset = ' --preset ISIC' if dermoscopy else ''
        return (f'{settings.data_folder}: {made}\n'
                + (f'{self._reasons()} (listed in prepare.json)\n' if self.left_out else '')
                + f'next: python main.py --phase train --dataset {settings.dataset}{preset}{place}')

    def _reasons(self):
        reasons = Counter(reason for many in self.left_out.values() for reason in many.split(', '))
        return 'left out: ' + (', '.join(f'{count} {reason}' for reason, count in reasons.most_common())
                               or 'no file')


class Split(NamedTuple):
    """How many disease pictures go to train, val and test."""

    shares: tuple  # three counts, or three fractions
    counted: bool

    @classmethod
    def of(cls, settings) -> 'Split':
        """From --split; raises UserError."""
        given = settings.split or DEFAULT_SPLIT[settings.source_format]
        wrong = UserError(f'--split {" ".join(map(str, given))}: three counts of train, val and test, as '
                          '200 31 31, or three fractions of at most 1 together, as 0.7 0.15 0.15')
        try:
            shares = tuple(float(share) for share in given)
        except ValueError:
            raise wrong from None
        if len(shares) != 3 or not all(0 <= share < 1e9 for share in shares) or not sum(shares):
            raise wrong
        if sum(shares) <= 1 + 1e-9:
            return cls(shares, False)
        if any(share % 1 for share in shares):
            raise wrong
        return cls(tuple(int(share) for share in shares), True)

    def sizes(self, total: int) -> dict[str, int]:
        """Pictures of each split when there are `total`."""
        if self.counted:
            return dict(zip(SPLITS, self.shares))
        ends = [round(sum(self.shares[:count]) * total) for count in range(4)]
        return {name: end - start for name, start, end in zip(SPLITS, ends, ends[1:])}

    def check(self, there: dict[str, int], what: str) -> None:
        """Raises UserError where fewer are there than were counted."""
        wanted = dict(zip(SPLITS, self.shares))
        if self.counted and any(there[name] < wanted[name] for name in SPLITS):
            found = ', '.join(f'{there[name]} for {name}' for name in SPLITS)
            raise UserError(
                f'--split {" ".join(map(str, self.shares))}: there are only {found} {what}; ask for '
                'fewer, or give fractions, as 0.7 0.15 0.15')


def fit(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """At (height, width), bicubic; one of that size keeps its pixels."""
    return picture if picture.size == size[::-1] else dataset.resize(picture, size)


def fit_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A label bool H×W at (height, width)."""
    if label.shape == size:
        return label
    grey = Image.fromarray(label.astype(np.uint8) * 255)
    return np.asarray(grey.resize(size[::-1], Image.Resampling.BILINEAR)) > 127


def read_pair(picture: Path, label: Path | None) -> tuple[Image.Image, np.ndarray | None]:
    """A picture and its label, bool H×W; raises UserError."""
    image = dataset.read_picture(picture)
    if label is None:
        return image, None
    mask = dataset.read_label(label)
    if mask.shape != image.size[::-1]:
        raise UserError(f'{label}: {mask.shape[1]}×{mask.shape[0]} px, but {picture.name} is '
                        f'{image.width}×{image.height} px')
    return image, mask


# ------------------------------------------------------------------------------------------ brats


class Scan(NamedTuple):
    """A volume with its segmentation."""

    patient: str
    name: str
    volume: Path
    label: Path


def from_brats(made: DataSet, sources: list[Path]) -> None:
    """Axial slices. Patients, not slices, are shared out, and slices are taken evenly of all scans."""
    settings = made.settings
    slice_range(settings.z_range, 0)  # says what is wrong with it
    scans = find_scans(made, sources)
    slices = {}  # scan -> the slices of disease, the normal ones
    for found, scan in zip(made.progress(lambda scan: survey(scan, settings), scans,
                                         'looking through volumes'), scans):
        if found:
            slices[scan] = found
    if slices and not any(disease for disease, _, _ in slices.values()):
        largest = max(largest for *_, largest in slices.values())
        raise UserError(f'--lesion_px {settings.lesion_px}: no slice of --z_range {settings.z_range} shows such '
                        f'a lesion; the largest has {largest} px (of a picture of --img_size '
                        f'{settings.img_size}); lower it, or give another range')
    slices = {scan: (disease, normal) for scan, (disease, normal, _) in slices.items()}
    patients = share_patients(made, slices)
    chosen = {}
    for split in SPLITS:
        own = [scan for scan in slices if scan.patient in patients[split]]
        wanted = sum(len(slices[scan][0]) for scan in own)
        if made.split.counted:
            wanted = min(wanted, made.split.shares[SPLITS.index(split)])
        disease = take_evenly({scan: slices[scan][0] for scan in own}, wanted, made.rng)
        normal = take_evenly({scan: slices[scan][1] for scan in own}, wanted, made.rng)
        for domain, taken in (('A', disease), ('B', normal if split != 'val' else ())):
            for scan, z in taken:
                chosen.setdefault((scan, split), []).append((z, domain))
    there = {split: sum(len(slices[scan][0]) for scan in slices if scan.patient in patients[split])
             for split in SPLITS}
    made.split.check(there, f'(slices with a lesion of {settings.lesion_px} px or more, patients being kept '
                            'apart)')
    made.extra['patients'] = {split: sorted({scan.patient for scan, own in chosen if own == split})
                              for split in SPLITS}

    def cut(item):
        (scan, split), wanted = item
        volume, lesion = read_scan(scan)
        return [(split, domain, f'{volumes.stem(scan.volume)}_{z:03}',
                 fit(Image.fromarray(volume.picture(z)), settings.size),
                 slice_label(volume, lesion, z, settings.size)) for z, domain in sorted(wanted)]

    for pictures in made.progress(cut, list(chosen.items()), 'cutting slices'):
        for picture in pictures or ():
            made.add(*picture)


def find_scans(made: DataSet, sources: list[Path]) -> list[Scan]:
    """The volumes of the modality that have a segmentation; of those without it is noted."""
    modality, scans, kinds = made.settings.modality, [], Counter()
    by_folder, seen = {}, {}
    for source in sources:
        if len(sources) > 1 and not volumes.find(source):
            raise UserError(f'--source {source}: holds no volumes ({", ".join(volumes.SUFFIXES)})')
    for path in (path for source in sources for path in volumes.find(source)):
        if not (named := volumes.case_and_kind(path)):
            continue
        case, kind = named
        kinds[kind] += 1
        by_folder.setdefault(path.parent, {}).setdefault(kind, {}).setdefault(case, path)
        if kind == modality and seen.setdefault(volumes.stem(path), path) is not path:
            made.problems.add(path, f'named as {seen[volumes.stem(path)]} is; remove one')
    if not kinds[modality]:
        raise UserError(
            f'--source {" ".join(map(str, sources))}: holds no volume whose name ends in '
            + ' or '.join(f'_{name}.nii.gz' for name in volumes.MODALITIES[modality])
            + (f'; there are {", ".join(sorted(kinds))}: choose one with --modality' if kinds else ''))
    for folder in sorted(by_folder):
        there = by_folder[folder]
        labels = there.get('seg', {})
        for case, path in there.get(modality, {}).items():
            label = labels.get(case)
            if label is None and len(there[modality]) == len(labels) == 1:
                label = next(iter(labels.values()))  # BraTS 2020 has one of another name
            if path in made.problems.reasons:
                continue
            if label is None:
                made.left_out[path] = 'without a segmentation'
                continue
            again = TIME_POINT.fullmatch(case)
            scans.append(Scan(again[1] if again else case, case, path, label))
    return sorted(scans, key=lambda scan: scan.name)


def read_scan(scan: Scan) -> tuple[volumes.Volume, np.ndarray]:
    """The volume and where its lesion is, bool X×Y×Z; raises UserError where they do not fit."""
    volume, label = volumes.read(scan.volume), volumes.read(scan.label)
    if volume.source.shape != label.source.shape:
        raise UserError(f'{scan.label}: {"×".join(map(str, label.source.shape))} voxels, but '
                        f'{scan.volume.name} has {"×".join(map(str, volume.source.shape))}')
    apart = np.abs(volume.source.affine - label.source.affine).max()
    if not apart < 0.1 * min(volume.spacing):
        raise UserError(f'{scan.label}: lies elsewhere in space than {scan.volume.name} (their affines '
                        f'differ by up to {apart:.3g} mm)')
    return volume, label.values > 0.5


def survey(scan: Scan, settings) -> tuple[list[int], list[int], int]:
    """The slices that show disease, those that are normal, and the size of the largest lesion, px."""
    volume, lesion = read_scan(scan)
    disease, normal, largest = [], [], 0
    for z in slice_range(settings.z_range, len(volume.slices)):
        if volume.head_share(z) < ENOUGH_HEAD:
            continue
        if not lesion[..., z].any():
            normal.append(z)
            continue
        area = int(slice_label(volume, lesion, z, settings.size).sum())
        largest = max(largest, area)
        if area >= max(1, settings.lesion_px):
            disease.append(z)
    return disease, normal, largest


def slice_range(text: str, count: int) -> range:
    """--z_range of a volume of `count` slices; raises UserError."""
    if text == 'all':
        return range(count)
    limits = re.fullmatch(r'(\d{1,6})-(\d{1,6})', text)
    if not limits or int(limits[1]) > int(limits[2]):
        raise UserError(f'--z_range {text}: first and last slice, counted from 0 at the bottom, as '
                        '90-120; or all')
    return range(min(int(limits[1]), count), min(int(limits[2]) + 1, count))


def slice_label(volume: volumes.Volume, lesion: np.ndarray, z: int, size: tuple) -> np.ndarray:
    """The label of a slice's picture, bool H×W."""
    return fit_label(volume.to_picture(lesion[..., z]), size)


def share_patients(made: DataSet, slices: dict[Scan, tuple]) -> dict[str, set[str]]:
    """Split -> patients. Those with the most slices first, each to the split that has least of what
    it wants, so that all get about the share they asked for."""
    shares = dict(zip(SPLITS, made.split.shares))
    if not made.split.counted and sum(shares.values()) < 1 - 1e-9:
        shares[None] = 1 - sum(shares.values())  # of no split
    shares = {split: share for split, share in shares.items() if share}
    weights = {}
    for scan, (disease, normal) in slices.items():
        weight = weights.setdefault(scan.patient, np.zeros(2))
        weight += len(disease), len(normal)
    patients = list(made.rng.permutation(sorted(weights)))
    patients.sort(key=lambda patient: tuple(-weights[patient]))
    patients_of = {split: set() for split in (*SPLITS, None)}
    filled = {split: np.zeros(2) for split in shares}
    for patient in patients:
        kind = 0 if weights[patient][0] else 1  # without a lesion it counts by its normal slices
        split = min(shares, key=lambda split: filled[split][kind] / shares[split])
        patients_of[split].add(str(patient))
        filled[split] += weights[patient]
    return patients_of


def take_evenly(slices: dict[Scan, list[int]], count: int, rng) -> list[tuple[Scan, int]]:
    """At most `count` slices: of each scan one by chance, then of each another, and so on."""
    ranked = []
    for order, scan in enumerate(rng.permutation(len(slices))):
        scan = list(slices)[scan]
        ranked += [(rank, order, scan, int(z)) for rank, z in enumerate(rng.permutation(slices[scan]))]
    return [(scan, z) for _, _, scan, z in sorted(ranked)[:count]]


# ------------------------------------------------------------------------------------------- isic


def from_isic(made: DataSet, sources: list[Path]) -> None:
    """Dermoscopy pictures; normal ones are corner crops of plain skin, of train's and test's own."""
    pictures, labels = find_isic(made, sources)
    size = made.settings.size

    def look(name):
        picture, label = read_pair(pictures[name], labels.get(name))
        pixels = np.asarray(picture)
        if found := artefacts.find(pixels):
            return found, None, None, None
        rng = np.random.default_rng([made.settings.seed % 2 ** 32, zlib.crc32(name.encode())])
        corner = artefacts.plain_corner(pixels, label, rng)
        if corner:
            top, left, side = corner
            corner = fit(picture.crop((left, top, left + side, top + side)), size)
        return (), fit(picture, size), None if label is None else fit_label(label, size), corner

    names, places = in_order(made, list(pictures), labels)
    for seen, name in zip(made.progress(look, names, 'looking at pictures'), names):
        if not seen:
            continue
        found, picture, label, corner = seen
        if found:
            made.left_out[pictures[name]] = ', '.join(found)
            continue
        split = places.next(label is not None)
        if split is None:
            made.left_out |= {pictures[other]: BEYOND for other in names[names.index(name):]}
            break
        made.add(split, 'A', name, picture, label)
        if split != 'val' and corner:
            made.add(split, 'B', f'{name}_health', corner)
    places.check(made)


def find_isic(made: DataSet, sources: list[Path]) -> tuple[dict[str, Path], dict[str, Path]]:
    """Pictures and labels by name, ISIC_<number>."""
    found = {True: {}, False: {}}  # whether it is a label
    for path in sorted((path for source in sources for path in pictures_below(source)),
                       key=lambda path: path.name):
        named = ISIC.fullmatch(path.stem)
        if named:
            first = found[bool(named['label'])].setdefault(named['name'], path)
            if first is not path:
                made.problems.add(path, f'named as {first} is; remove one')
    if not found[False]:
        raise UserError(f'--source {" ".join(map(str, sources))}: holds no pictures named '
                        'ISIC_<number>.jpg; for others use --source_format folders')
    return found[False], found[True]


# ---------------------------------------------------------------------------------------- folders


def from_folders(made: DataSet, sources: list[Path]) -> None:
    """Disease, normal and perhaps labels; or one folder laid out as a data set is."""
    if len(sources) == 1:
        copy_layout(made, sources[0])
        return
    if len(sources) > 3:
        raise UserError(f'--source: {len(sources)} folders, but folders are disease and normal pictures, '
                        'and a third one labels')
    labels = {}
    if len(sources) == 3:
        for name, path in named_below(sources[2]).items():
            ending = name[-len(dataset.LABEL_ENDING):].lower() == dataset.LABEL_ENDING
            labels[name[:-len(dataset.LABEL_ENDING)] if ending else name] = path
    disease, normal = (named_below(source, sources[2:]) for source in sources[:2])
    for name in sorted(set(labels) - set(disease)):
        made.problems.add(labels.pop(name), f'label without a picture: {sources[0]} has no {name}')
    size = made.settings.size

    def read(name):
        picture, label = read_pair(disease[name], labels.get(name))
        return fit(picture, size), None if label is None else fit_label(label, size)

    names, places = in_order(made, list(disease), labels)
    for pair, name in zip(made.progress(read, names, 'disease'), names):
        if pair:
            split = places.next(pair[1] is not None)
            if split is None:
                made.left_out[disease[name]] = BEYOND
            else:
                made.add(split, 'A', name, *pair)
    places.check(made)
    names = [str(name) for name in made.rng.permutation(sorted(normal))]
    for_test = round(len(names) * made.counts['testA'] / (made.counts['testA'] + made.counts['trainA']))
    tested = set(names[:for_test])
    pictures = made.progress(lambda name: fit(dataset.read_picture(normal[name]), size), names, 'normal')
    for picture, name in zip(pictures, names):
        if picture:
            made.add('test' if name in tested else 'train', 'B', name, picture)


def copy_layout(made: DataSet, source: Path) -> None:
    """A data set in our own layout, every picture in its place."""
    if not any((source / name).is_dir() for name in ('trainA', 'testA')):
        raise UserError(f'--source {source}: one folder is a data set laid out as ours are, but it holds '
                        'neither trainA nor testA; or give two: disease and normal pictures')
    if made.settings.split:
        raise UserError(f'--split: {source} is split already, and stays so; leave --split out')
    size, items = made.settings.size, []
    for place in ('trainA', 'trainB', 'testB'):
        if (source / place).is_dir():
            items += [(place[:-1], place[-1], dataset.Case(path.stem, path))
                      for path in dataset.list_pictures(source / place, made.problems)]
    for split, place in (('test', 'testA'), ('val', 'val')):
        if (source / place).is_dir():
            items += [(split, 'A', case) for case in dataset.find_cases(source, split, made.problems)]

    def read(item):
        picture, label = read_pair(item[2].picture, item[2].label)
        return fit(picture, size), None if label is None else fit_label(label, size)

    items = [item for item in items if item[2].picture not in made.problems.reasons]
    for pair, (split, domain, case) in zip(made.progress(read, items, 'pictures'), items):
        if pair:
            made.add(split, domain, case.name, *pair)
    made.split = Split((made.counts['trainA'], made.counts['val/images'], made.counts['testA']), True)


def pictures_below(folder: Path) -> list[Path]:
    """All pictures of a folder and those below it, by path; hidden ones are passed over."""
    return sorted(path for path in folder.rglob('*')
                  if path.suffix.lower() in dataset.PICTURE_SUFFIXES and not path.is_dir()
                  and not any(part.startswith('.') for part in path.relative_to(folder).parts))


def named_below(folder: Path, but: list[Path] = ()) -> dict[str, Path]:
    """Pictures below a folder by name, into which the folders between go; without those `but`. Raises
    UserError where there are none. (Names are composed: macOS writes ä as two characters.)"""
    found = {}
    for path in pictures_below(folder):
        if any(other.resolve() in path.resolve().parents for other in but):
            continue
        name = unicodedata.normalize('NFC', '_'.join(path.relative_to(folder).with_suffix('').parts))
        if name in found:
            raise UserError(f'{path}: would be named as {found[name]} is; rename one')
        found[name] = path
    if not found:
        raise UserError(f'--source {folder}: holds no pictures '
                        f'({", ".join(sorted(dataset.PICTURE_SUFFIXES))})')
    return found


class Places:
    """Which split the next picture goes to: test and val are filled first, and need labels; train
    takes what comes then. Without any label test takes pictures all the same, and val none."""

    def __init__(self, split: Split, total: int, labelled: int):
        self.split, self.labelled = split, labelled
        self.sizes = split.sizes(total)
        if not labelled:
            if not split.counted:
                self.sizes['train'] += self.sizes['val']
            self.sizes['val'] = 0
        self.filled = Counter()

    def next(self, has_label: bool) -> str | None:
        """None when all are full."""
        for name in ('test', 'val', 'train'):
            if self.filled[name] < self.sizes[name] and (has_label or name == 'train'
                                                         or not self.labelled):
                self.filled[name] += 1
                return name
        return None

    def check(self, made: DataSet) -> None:
        """Raises UserError where fewer pictures were found than were asked for."""
        if not self.labelled and self.split.shares[1]:
            print('no picture has a label, so val, which chooses by labels, stays empty')
            self.filled['val'] = self.split.shares[1]
        bad = len(made.left_out) + len(made.problems.reasons)
        self.split.check(self.filled, f'(val and test take pictures with labels; {bad} left out)')


def in_order(made: DataSet, names: list[str], labels: dict) -> tuple[list[str], Places]:
    """Names shuffled, those with a label first, and where they go."""
    names = [str(name) for name in made.rng.permutation(sorted(names))]
    names.sort(key=lambda name: name not in labels)
    return names, Places(made.split, len(names), len(labels))
