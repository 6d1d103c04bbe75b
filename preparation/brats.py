"""Trees of NIfTI volumes with segmentations, as BraTS has them: axial slices as images."""
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from config import Config
from preparation import heights, nifti
from preparation.writer import (
    SPLITS,
    WITHOUT_SEGMENTATION,
    DatasetWriter,
    TooFewImages,
    resize_image,
    resize_label,
)
from utils import UserError

BRATS_DEPTH, DEFAULT_RANGE = 155, '90-120'  # slices of a volume of BraTS, and those published
LESION_HEIGHTS = (5, 95)  # ours: percentiles of the heights of diseased slices, for other volumes
HEIGHT_TELLS = 0.75  # ours: AUC of height alone, from which the summary says what to do
MIN_HEAD_SHARE = 0.2  # ours: of the square around the head; slices with less are not taken
TIME_POINT = re.compile(r'(BraTS-\w+-\d+)-\d{3}', re.I)  # since BraTS 2023 a patient may come again


class Scan(NamedTuple):
    patient: str
    name: str
    volume: Path
    label: Path


class Slices(NamedTuple):
    """The usable slices of a scan: with a lesion of at least --lesion_px, and without any."""

    disease: list[int]
    normal: list[int]
    small: int  # number of slices whose lesion is below --lesion_px
    largest_lesion: int  # px of the prepared image
    heights: np.ndarray  # of all slices, see heights.py
    lesions: tuple[int, int] | None  # the lowest and the highest slice with any lesion

    def between(self, low: float, high: float) -> 'Slices':
        """Those of these heights."""
        disease, normal = ([z for z in chosen if low <= self.heights[z] <= high]
                           for chosen in (self.disease, self.normal))
        return self._replace(disease=disease, normal=normal)


def from_brats(writer: DatasetWriter, sources: list[Path]) -> None:
    """Axial slices of all scans. Patients, not slices, are shared out among train, val and test;
    slices are taken evenly of a split's scans. Raises UserError."""
    size = writer.config.size
    slice_range(writer.config.z_range or 'all', 0)  # an error before volumes are read
    slices = find_slices(writer, find_scans(writer, sources))
    writer.notes.append(where_lesions_lie(slices))
    found = slices
    if not writer.config.z_range:
        slices = at_heights_of_lesions(writer, slices)
    try:
        chosen = choose_slices(writer, slices, split_patients(writer, slices))
    except TooFewImages:
        if writer.config.split:
            raise
        writer.take_fractions()  # here, so that volumes are not read again
        chosen = choose_slices(writer, slices, split_patients(writer, slices))
    note_unused(writer, found, [z for taken in chosen.values() for z in taken])
    writer.details['patients'] = {
        name: sorted({scan.patient for scan, split in chosen if split == name}) for name in SPLITS}

    def cut(item: tuple[tuple[Scan, str], list[tuple[int, str]]]) -> list[tuple]:
        (scan, split), chosen_slices = item
        volume, lesion = read_scan(scan)
        return [(split, domain, f'{nifti.stem(nifti.named(scan.volume))}_{z:03}',
                 resize_image(Image.fromarray(volume.image(z)), size),
                 resize_label(volume.to_image(lesion[..., z]), size))
                for z, domain in sorted(chosen_slices)]

    for _, images in writer.process(cut, list(chosen.items()), 'cutting slices'):
        for image in images or ():
            writer.add(*image)


def find_scans(writer: DatasetWriter, sources: list[Path]) -> list[Scan]:
    """The volumes of --modality that have a segmentation, by name; those without one are noted in
    `writer.left_out`. Raises UserError where there is no volume of the modality."""
    scans = []
    for volumes in group_volumes(writer, sources):
        images, labels = volumes.get(writer.config.modality, {}), volumes.get('seg', {})
        if len(images) == len(labels) == 1:
            labels = dict(zip(images, labels.values(), strict=True))  # BraTS 2020: another name
        for case, path in images.items():
            name = f'{nifti.stem(nifti.named(path))}_000'  # of a slice
            if not writer.can_be_named(path, name):
                continue
            if path not in writer.problems.reasons and case in labels:
                repeated = TIME_POINT.fullmatch(case)
                scans.append(Scan(repeated[1] if repeated else case, case, path, labels[case]))
            elif path not in writer.problems.reasons:
                writer.left_out[path] = WITHOUT_SEGMENTATION
    return sorted(scans, key=lambda scan: scan.name)


def group_volumes(writer: DatasetWriter, sources: list[Path]) -> list[dict[str, dict[str, Path]]]:
    """For each folder: modality or 'seg' → case → volume. Repeated names are `writer.problems`."""
    modality, paths = writer.config.modality, []
    folders: dict[Path, dict[str, dict[str, Path]]] = {}
    first_of_name: dict[str, Path] = {}
    for source in sources:
        volumes = writer.problems.without_broken_links(nifti.find_volumes(source))
        if len(sources) > 1 and not volumes:
            raise UserError(f'--source {source}: holds no volumes ({", ".join(nifti.SUFFIXES)})')
        paths += volumes
    for path in paths:
        case, kind = nifti.case_and_kind(path) or (None, None)
        if not case:
            continue
        folders.setdefault(nifti.case_folder(path), {}).setdefault(kind, {}).setdefault(case, path)
        if kind == modality:
            first = first_of_name.setdefault(nifti.stem(nifti.named(path)), path)
            if first is not path:
                writer.problems.add(path, f'named as {first} is; remove one')
    if not first_of_name:
        endings = ' or '.join(f'_{word}.nii.gz' for word in nifti.MODALITIES[modality])
        kinds = ', '.join(sorted(set().union(*folders.values())))
        others = f'; there are {kinds}: choose one with --modality' if kinds else ''
        broken = f'; {writer.problems.listing.strip()}' if writer.problems.reasons else ''
        raise UserError(f'--source {" ".join(map(str, sources))}: holds no volume whose name ends '
                        f'in {endings}{others}{broken}')
    return [folders[folder] for folder in sorted(folders)]


def read_scan(scan: Scan) -> tuple[nifti.Volume, np.ndarray]:
    """The volume and its lesion, bool X×Y×Z; raises UserError where they do not fit."""
    volume, label = nifti.read(scan.volume), nifti.read(scan.label)
    lesion = nifti.in_axes_of(volume, label) > 0.5
    if label.infinite:
        raise UserError(f'{scan.label}: {label.infinite} infinite values, but a label has classes')
    return volume, lesion


def find_slices(writer: DatasetWriter, scans: list[Scan]) -> dict[Scan, Slices]:
    """The usable slices of all readable scans; raises UserError where none shows a large lesion."""
    config = writer.config
    slices = {scan: of_scan for scan, of_scan in writer.process(
        lambda scan: usable_slices(scan, config), scans, 'looking through volumes') if of_scan}
    depth = max((len(of_scan.heights) for of_scan in slices.values()), default=0)
    if slices and config.z_range and not slice_range(config.z_range, depth):
        raise UserError(f'--z_range {config.z_range}: lies above all volumes: '
                        f'{where_lesions_lie(slices)}; give another range, or leave it out')
    if slices and not any(of_scan.disease for of_scan in slices.values()):
        largest = max(of_scan.largest_lesion for of_scan in slices.values())
        where = f'--z_range {config.z_range}' if config.z_range else 'the default --z_range'
        raise UserError(f'--lesion_px {config.lesion_px}: no slice of {where} shows such a lesion; '
                        f'the largest has {largest} px (of an image of --img_size '
                        f'{config.img_size}); {where_lesions_lie(slices)}; lower it, or give '
                        'another range')
    return slices


def where_lesions_lie(slices: dict[Scan, Slices]) -> str:
    """How many slices the volumes have, and in which of them lesions lie."""
    depths = [len(of_scan.heights) for of_scan in slices.values()]
    ends = [z for of_scan in slices.values() for z in of_scan.lesions or ()]
    text = f'volumes of {span(depths)} slices' if depths else 'no volume can be read'
    return text + (f', with lesions in slices {min(ends)}-{max(ends)}' if ends else
                   ', without any lesion' if depths else '')


def span(numbers: list[int]) -> str:
    """From the least to the greatest, as 20-31; where all are equal, that."""
    return '-'.join(str(number) for number in sorted({min(numbers), max(numbers)}))


def at_heights_of_lesions(writer: DatasetWriter, slices: dict[Scan, Slices]
                          ) -> dict[Scan, Slices]:
    """The default --z_range of volumes other than BraTS's: slices at the heights where most of the
    diseased ones lie."""
    others = {scan: of_scan for scan, of_scan in slices.items()
              if len(of_scan.heights) != BRATS_DEPTH}
    diseased = [of_scan.heights[z] for of_scan in others.values() for z in of_scan.disease]
    if len(others) < len(slices):
        writer.notes.append(f'of volumes of {BRATS_DEPTH} slices those of --z_range '
                            f'{DEFAULT_RANGE} are taken')
    if not diseased:
        return slices
    low, high = np.percentile(diseased, LESION_HEIGHTS)
    writer.notes.append(f'slices taken from {100 * low:.0f} to {100 * high:.0f} % of the height of '
                        'the head, where most lesions lie (--z_range takes others)')
    return slices | {scan: of_scan.between(low, high) for scan, of_scan in others.items()}


def usable_slices(scan: Scan, config: Config) -> Slices:
    """The slices of a scan in --z_range that show enough head; raises UserError where it cannot be
    read. A slice with a lesion below --lesion_px is neither disease nor normal."""
    volume, lesion = read_scan(scan)
    volume.warn()
    disease, normal, areas, depth = [], [], [0], len(volume.slices)
    with_lesion = np.flatnonzero(lesion.any((0, 1))).tolist()
    for z in slice_range(config.z_range or (DEFAULT_RANGE if depth == BRATS_DEPTH else 'all'),
                         depth):
        if volume.head_share(z) < MIN_HEAD_SHARE:
            continue
        if not lesion[..., z].any():
            normal.append(z)
            continue
        area = int(resize_label(volume.to_image(lesion[..., z]), config.size).sum())
        areas.append(area)
        if area >= max(1, config.lesion_px):
            disease.append(z)
    small = len(areas) - 1 - len(disease)
    return Slices(disease, normal, small, max(areas), heights.head_heights(volume.head.sum((0, 1))),
                  (with_lesion[0], with_lesion[-1]) if with_lesion else None)


def slice_range(text: str, count: int) -> range:
    """--z_range of a volume of `count` slices; raises UserError."""
    if text == 'all':
        return range(count)
    limits = re.fullmatch(r'(\d{1,6})-(\d{1,6})', text)
    if not limits or int(limits[1]) > int(limits[2]):
        raise UserError(f'--z_range {text}: first and last slice, counted from 0 at the bottom, as '
                        '90-120; or all')
    return range(min(int(limits[1]), count), min(int(limits[2]) + 1, count))


def split_patients(writer: DatasetWriter, slices: dict[Scan, Slices]) -> dict[str, set[str]]:
    """Split → patients. Those with the most slices come first; each goes to the split that has
    least of what it needs, so that all get about their share of --split."""
    shares = dict(zip(SPLITS, writer.split.shares, strict=True))
    if not writer.split.counted and sum(shares.values()) < 1 - 1e-9:
        shares[None] = 1 - sum(shares.values())  # of no split
    shares = {split: share for split, share in shares.items() if share}
    weights = {}  # patient → numbers of disease and normal slices
    for scan, of_scan in slices.items():
        weight = weights.setdefault(scan.patient, np.zeros(2))
        weight += len(of_scan.disease), len(of_scan.normal)
    order = list(writer.rng.permutation(sorted(weights)))
    order.sort(key=lambda patient: tuple(-weights[patient]))
    patients = {split: set() for split in (*SPLITS, None)}
    filled = {split: np.zeros(2) for split in shares}
    for patient in order:
        kind = 0 if weights[patient][0] else 1  # without a lesion it counts by its normal slices
        least_filled = min(shares, key=lambda split, kind=kind: filled[split][kind] / shares[split])
        patients[least_filled].add(str(patient))
        filled[least_filled] += weights[patient]
    return patients


def choose_slices(writer: DatasetWriter, slices: dict[Scan, Slices], patients: dict[str, set[str]]
                  ) -> dict[tuple[Scan, str], list[tuple[int, str]]]:
    """(scan, split) → slices and their domains: as many disease slices as --split counts, or all,
    and at most as many normal ones, of the same heights, none for val. Raises UserError where there
    are too few."""
    chosen, available, heights_of = {}, {}, {}
    for split, share in zip(SPLITS, writer.split.shares, strict=True):
        scans = [scan for scan in slices if scan.patient in patients[split]]
        available[split] = sum(len(slices[scan].disease) for scan in scans)
        count = min(available[split], share) if writer.split.counted else available[split]
        disease = take_evenly({scan: slices[scan].disease for scan in scans}, count, writer.rng)
        normal = take_evenly({scan: slices[scan].normal for scan in scans}, None, writer.rng)
        wanted, offered = ([slices[scan].heights[z] for scan, z in taken]
                           for taken in (disease, normal))
        normal = [normal[number] for number in heights.match(wanted, offered, writer.rng)]
        for domain, taken in (('A', disease), ('B', normal if split != 'val' else ())):
            heights_of[split, domain] = [slices[scan].heights[z] for scan, z in taken]
            for scan, z in taken:
                chosen.setdefault((scan, split), []).append((z, domain))
    writer.split.check(available, f'(slices with a lesion of {writer.config.lesion_px} px or more, '
                                  'each patient in one split)')
    note_heights(writer, heights_of['train', 'A'], heights_of['train', 'B'])
    return chosen


def note_unused(writer: DatasetWriter, found: dict[Scan, Slices], chosen: list[tuple[int, str]]
                ) -> None:
    """Say how many slices in --z_range become no image. `chosen`: (slice, domain) of all others."""
    taken = Counter(domain for _, domain in chosen)
    of_scans = found.values()
    disease = sum(len(of_scan.disease) for of_scan in of_scans) - taken['A']
    normal = sum(len(of_scan.normal) for of_scan in of_scans) - taken['B']
    small = sum(of_scan.small for of_scan in of_scans)
    writer.notes.append(f'slices not used: {small} with a lesion below --lesion_px '
                        f'{writer.config.lesion_px}, {disease} other diseased and {normal} normal '
                        'ones (of other heights, or beyond --split)')


def note_heights(writer: DatasetWriter, disease: list[float], normal: list[float]) -> None:
    """Say how well height alone distinguishes the training folders."""
    if not disease or not normal:
        return
    overlap, area = heights.overlap(disease, normal), heights.separation(disease, normal)
    writer.details['heights'] = {'overlap': round(overlap, 3), 'auc': round(area, 3)}
    advice = ('; a classifier may learn height: add volumes, or narrow --z_range'
              if area > HEIGHT_TELLS else '')
    writer.notes.append(f'heights of disease and normal slices overlap by {100 * overlap:.0f} %; '
                        f'height alone separates trainA from trainB with AUC {area:.2f} (0.5: not '
                        f'at all){advice}')


def take_evenly(slices: dict[Scan, list[int]], count: int | None, rng: np.random.Generator
                ) -> list[tuple[Scan, int]]:
    """At most `count` slices, or all: a random one of each scan, then another of each …"""
    ranked = []
    for order, number in enumerate(rng.permutation(len(slices))):
        scan = list(slices)[number]
        ranked += [(rank, order, scan, int(z))
                   for rank, z in enumerate(rng.permutation(slices[scan]))]
    return [(scan, z) for _, _, scan, z in sorted(ranked)[:count]]
