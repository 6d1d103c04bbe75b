"""Masks of any pictures and volumes: --phase predict, and from Python

    from predict import Segmenter
    segmenter = Segmenter('results/ISIC/model2/best.pt')
    masks = segmenter.predict([image, …])  # H×W×3 uint8 in, H×W bool out
"""
import csv
import itertools
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

import checkpoint as checkpoints
import dataset
import volumes
from masks import at_a_time, choose_teacher, mask_network, outputs, resize_map
from postprocess import clear_corners, segment, to_bytes
from selection import chosen_rule, stored_choice
from settings import Settings, resolve
from utils import UserError, ahead, bar_interval, cores, make_folder, pick_device

COLUMNS = ('file', 'slice', 'lesion_px', 'lesion_percent', 'lesion_mm2', 'lesion_ml')


class Prediction(NamedTuple):
    """What is lesion in one picture, in the picture's own size."""

    segmentation: np.ndarray  # H×W bool
    probability: np.ndarray  # H×W float32 in [0, 1]: the soft mask


class Segmenter:
    """A trained network that finds the lesions of pictures.

    Its post-processing is that of a test: what val chose for the checkpoint (`val.json` beside it),
    else the default. A picture whose soft mask nowhere reaches `presence` holds no lesion.
    """

    def __init__(self, checkpoint: str | Path, device: str = 'auto', **flags):
        """`checkpoint` is a file of any stage, ours or the authors'; `device` auto, cpu, cuda, cuda:1
        or mps; `flags` are those of main.py that matter to masks (`postprocess='otsu'`, `presence=0`,
        `flips=False`, `batch_size=4`, …). Raises utils.UserError, one line, for a file that is no
        checkpoint or flags that cannot be."""
        source = checkpoints.read(Path(checkpoint))
        if unknown := flags.keys() - Settings.__dataclass_fields__.keys():
            raise UserError(f'Segmenter: {sorted(unknown)[0]} is no flag; python main.py --help lists them')
        flags = flags | {'phase': 'predict', 'device': device}
        self.settings = resolve(flags, source.settings, str(checkpoint))
        self.device = pick_device(device)
        self.network = mask_network(source, self.settings, self.device)
        self.rule, self.exponent = chosen_rule(self.settings, stored_choice(source))
        if self.rule == 'none':
            raise UserError('--postprocess none: a prediction needs a rule; for soft masks alone use '
                            '--probability True')
        self.before = None  # of stage 2 as published, whose second picture is the stage-1 mask
        if (self.settings.stage, self.settings.scheme) == (2, 'published'):
            teacher = choose_teacher(self.settings, source.path.parent)
            if teacher is None:
                raise UserError(f'{checkpoint}: needs the stage-1 network whose masks it looks at; '
                                'name it with --teacher')
            self.before = Segmenter(teacher, device, flips=self.settings.flips)

    def predict(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The segmentation, H×W bool, of each picture: uint8 in [0, 255], H×W×3 (RGB) or H×W (grey),
        of any sizes; an array N×H×W×3 will do. Raises ValueError for anything else."""
        return [made.segmentation for made in self.predict_each(images)]

    def probabilities(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The soft mask, H×W float32 in [0, 1], of each picture, which are as for `predict`."""
        return [probability for _, probability in self._soft(images)]

    def predict_each(self, images: Iterable[np.ndarray]) -> Iterator[Prediction]:
        """As `predict`, one after the other for any number of pictures, with their soft masks."""
        return ahead(lambda made: self._decide(*made), self._soft(images), cores())

    def _soft(self, images):
        """(picture H×W×3 uint8, soft mask) of each."""
        if isinstance(images, np.ndarray) and (images.ndim < 3 or images.ndim == 3
                                               and images.shape[2] in (1, 3)):
            raise ValueError('one picture; give a list of them, as [picture]')
        settings, images = self.settings, iter(images)
        while some := list(itertools.islice(images, at_a_time(settings, self.device))):
            some = [as_picture(image) for image in some]
            batch = {'image': self._stack(some, settings.img_ch)}
            if self.before:
                masks = [Image.fromarray(to_bytes(mask)) for _, mask in self.before._soft(
                    np.asarray(image) for image in some)]
                batch['mask'] = self._stack(masks, 1)
            for image, (mask, *_) in zip(some, outputs(self.network, batch, settings, self.device)):
                yield np.asarray(image), resize_map(mask, image.size)

    def _stack(self, some, channels):
        mode = 'RGB' if channels == 3 else 'L'
        return dataset.stack([dataset.to_tensor(dataset.resize(image.convert(mode),
                                                               self.settings.size))
                              for image in some])

    def _decide(self, image, probability):
        settings = self.settings
        if probability.max() < settings.presence:
            segmentation = np.zeros(probability.shape, bool)
        else:
            segmentation = segment(to_bytes(probability), self.rule, image, self.exponent,
                                   settings.lesions)
        if settings.clear_corners:
            segmentation = clear_corners(segmentation)
        return Prediction(segmentation, probability)


def as_picture(image: np.ndarray) -> Image.Image:
    """H×W×3, H×W×1 or H×W uint8 as an RGB picture; raises ValueError for other arrays."""
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.dtype != np.uint8 or not (image.ndim == 2 or image.ndim == 3 and image.shape[2] == 3) \
            or not image.size:
        raise ValueError(f'a picture is an array H×W×3 or H×W of uint8, 0 to 255, but this one is '
                         f'{image.dtype} of shape {image.shape}')
    return Image.fromarray(image).convert('RGB')


# ------------------------------------------------------------------------------ the command line


class Table:
    """predictions.csv, a row a picture; of a volume a row each slice that holds a lesion, and one of
    the whole. Lesion area in pixels and percent of the picture, in mm² and ml where spacing is known."""

    def __init__(self, path: Path):
        self.path = path
        self.file = open(path, 'w', newline='')
        self.writer = csv.DictWriter(self.file, COLUMNS)
        self.writer.writeheader()
        self.pictures = self.with_lesion = 0

    def add(self, file: str, found: np.ndarray, pixels_mm2: float | None = None,
            slice_: int | None = None) -> None:
        """A picture's or slice's segmentation."""
        area = int(found.sum())
        if slice_ is None:
            self.pictures += 1
            self.with_lesion += area > 0
        self.writer.writerow({
            'file': file, 'slice': slice_, 'lesion_px': area,
            'lesion_percent': f'{100 * area / found.size:.3f}',
            'lesion_mm2': pixels_mm2 and f'{area * pixels_mm2:.2f}'})

    def add_volume(self, file: str, found: np.ndarray, spacing: tuple) -> None:
        """A segmentation X×Y×Z; spacing in mm."""
        for z in np.flatnonzero(found.any((0, 1))):
            self.add(file, found[..., z], spacing[0] * spacing[1], int(z))
        voxels = int(found.sum())
        self.pictures += 1
        self.with_lesion += voxels > 0
        self.writer.writerow({
            'file': file, 'lesion_px': voxels, 'lesion_percent': f'{100 * voxels / found.size:.3f}',
            'lesion_ml': f'{voxels * np.prod(spacing) / 1000:.4f}'})
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def run(settings, segmenter: Segmenter) -> int:
    """--phase predict: masks of everything in --input into --output; the exit code, 1 where files had
    to be left out. Raises UserError."""
    given, output, single = check_places(settings)
    problems = dataset.Problems()
    found = {given: Path(given.name)} if given.is_file() else find(given, settings.modality, problems)
    if given.is_file():
        check_readable(given)
    folder = make_folder(output.parent if single else output, '--output')
    table = Table(folder / table_path(output, single).name)

    def target(path, ending):
        """The file that the masks of a picture go to."""
        name = output if single else output / found[path]
        return name.with_name(f'{bare_name(name)}{ending}')

    bar = tqdm(total=len(found), desc='predicting', unit=' files', mininterval=bar_interval())
    try:
        for path, made in predict_pictures(
                segmenter, [path for path in found if not volumes.is_volume(path)],
                settings.num_workers, problems):
            write(to_bytes(made.segmentation), target(path, '.png'))
            if settings.probability:
                write(to_bytes(made.probability), target(path, '_probability.png'))
            table.add(str(found[path]), made.segmentation)
            bar.update()
        for path in filter(volumes.is_volume, found):
            try:
                volume = volumes.read(path)
            except UserError as error:
                problems.add(path, str(error).removeprefix(f'{path}: '))
                continue
            ending = '.nii' if single and output.suffix == '.nii' else '.nii.gz'
            segmentation, probability = predict_volume(segmenter, volume)
            write_volume(volume, segmentation, target(path, ending))
            if settings.probability:
                write_volume(volume, probability, target(path, f'_probability{ending}'))
            table.add_volume(str(found[path]), segmentation > 0, volume.spacing)
            bar.update()
    finally:
        bar.close()
        table.close()
    print(f'{table.pictures} predicted by {segmenter.rule}, {table.with_lesion} with lesions; masks are in '
          f'{output}, areas in {table.path}')
    if problems.reasons:
        print(f'left out, since they cannot be used:\n{problems.listing}', file=sys.stderr)
        return 1
    return 0


def check_places(settings) -> tuple[Path, Path, bool]:
    """--input, --output, and whether the output is one file; raises UserError."""
    for name in ('input', 'output'):
        if not getattr(settings, name):
            raise UserError(f'--{name}: --phase predict needs it: --input PATH --output PATH')
    given, output = Path(settings.input), Path(settings.output)
    if not given.exists():
        raise UserError(f'--input {given}: no such file or folder')
    ending = ''.join(output.suffixes[-2:]) if volumes.is_volume(output) else output.suffix
    single = not output.is_dir() and ending.lower() in ('.png', *volumes.SUFFIXES)
    if single and not given.is_file():
        raise UserError(f'--output {output}: a file, but --input {given} is a folder; give a folder')
    if single and volumes.is_volume(given) != volumes.is_volume(output):
        raise UserError(f'--output {output}: masks of volumes are .nii or .nii.gz, those of pictures '
                        '.png')
    if not single and output.suffix and not output.is_dir():
        raise UserError(f'--output {output}: neither a folder nor a file that masks can be: .png for '
                        'pictures, .nii or .nii.gz for volumes')
    if output.resolve() == given.resolve() or (given.is_file() and not single
                                               and output.resolve() == given.parent.resolve()):
        raise UserError(f'--output {output}: would write over --input; give another place')
    if given.is_dir() and given.resolve() in output.resolve().parents:
        raise UserError(f'--output {output}: lies in --input, where masks would be taken for pictures next '
                        'time; give another place')
    check_free(output, table_path(output, single), settings.overwrite)
    return given, output, single


def check_free(output: Path, table: Path, overwrite: bool) -> None:
    """Raises UserError where something is there that must stay."""
    for path in (table, output):
        in_the_way = any(path.iterdir()) if path.is_dir() else path.exists()
        if in_the_way and not overwrite:
            raise UserError(f'--output {output}: {path} is there already; --overwrite True replaces what has '
                            'the same name, or give another place')
    if table.exists() and not is_table(table):
        raise UserError(f'--output {output}: {table} is there already, and no table of predictions, so it '
                        'stays; give another place')


def table_path(output: Path, single: bool) -> Path:
    """Where the areas go."""
    return output.with_name(f'{bare_name(output)}.csv') if single else output / 'predictions.csv'


def is_table(path: Path) -> bool:
    """Whether a file is a table of predictions."""
    if not path.is_file():
        return False
    with open(path, encoding='utf-8', errors='replace') as file:
        return file.readline().strip() == ','.join(COLUMNS)


def check_readable(path: Path) -> None:
    """Raises UserError for a file that is neither a picture nor a volume."""
    read = volumes.read if volumes.is_volume(path) else dataset.read_picture
    read(path)


def find(folder: Path, modality: str, problems: dataset.Problems) -> dict[Path, Path]:
    """Pictures and volumes of a folder and those below -> their paths in it. Hidden ones, labels, and
    of volumes that are named as BraTS does other modalities are passed over; of several that share a
    name up to the ending the first counts."""
    found, taken, passed_over = {}, {}, Counter()
    for path in sorted(folder.rglob('*')):
        inside = path.relative_to(folder)
        if (path.suffix.lower() not in dataset.PICTURE_SUFFIXES and not volumes.is_volume(path)
                or path.is_dir() or any(part.startswith('.') for part in inside.parts)):
            continue
        if kind := kind_of(path, modality):
            passed_over[kind] += 1
            continue
        key = inside.with_name(bare_name(inside)), volumes.is_volume(path)
        if key in taken:
            problems.add(path, f'named as {taken[key].name} is; rename one')
        else:
            taken[key] = path
            found[path] = inside
    if passed_over:
        print('passed over: ' + ', '.join(f'{count} {kind}' for kind, count in passed_over.items()))
    if not found:
        raise UserError(f'--input {folder}: holds no pictures '
                        f'({", ".join(sorted(dataset.PICTURE_SUFFIXES))}) and no volumes '
                        f'({", ".join(volumes.SUFFIXES)})')
    return found


def kind_of(path: Path, modality: str) -> str:
    """What else than a picture to predict a file is by its name; '' if it is one."""
    if not volumes.is_volume(path):
        return 'labels' if path.stem.lower().endswith(dataset.LABEL_ENDING) else ''
    kind = (volumes.case_and_kind(path) or ('', modality))[1]
    if kind == 'seg':
        return 'labels'
    return '' if kind == modality else f'of another --modality than {modality}'


def bare_name(path: Path) -> str:
    """A file's name without its ending; `.nii.gz` is one."""
    return volumes.stem(path) if volumes.is_volume(path) else path.stem


def predict_pictures(segmenter: Segmenter, paths: list[Path], threads: int,
                     problems: dataset.Problems) -> Iterator[tuple[Path, Prediction]]:
    """Path and prediction of each file that can be read; what cannot goes to `problems`."""

    def read(path):
        try:
            return path, np.asarray(dataset.read_picture(path))
        except UserError as error:
            problems.add(path, str(error).removeprefix(f'{path}: '))
            return path, None

    there = ((path, image) for path, image in ahead(read, paths, threads) if image is not None)
    ours, network = itertools.tee(there)  # at most a few batches apart
    for (path, _), made in zip(ours, segmenter.predict_each(image for _, image in network)):
        yield path, made


def predict_volume(segmenter: Segmenter, volume: volumes.Volume) -> tuple[np.ndarray, np.ndarray]:
    """Segmentation, uint8 0/1, and soft mask, float32 in [0, 1], both X×Y×Z in the canonical
    orientation. Slices that hold hardly any head hold no lesion."""
    segmentation = np.zeros(volume.values.shape, np.uint8)
    probability = np.zeros(volume.values.shape, np.float32)
    wanted = [z for z in volume.slices if volume.head_share(z) >= volumes.LEAST_HEAD]
    if not wanted:
        tqdm.write(f'{volume.path}: no slice holds enough head, so none was looked at')
    made = segmenter.predict_each(volume.picture(z) for z in wanted)
    for z, one in zip(wanted, tqdm(made, volume.path.name, len(wanted), unit=' slices',
                                   mininterval=bar_interval(), leave=False)):
        segmentation[..., z] = volume.to_plane(one.segmentation.astype(np.uint8))
        probability[..., z] = volume.to_plane(one.probability)
    return segmentation, probability


def write(mask: np.ndarray, path: Path) -> None:
    """A uint8 mask H×W as PNG; whole or not at all."""
    temporary = make_folder(path.parent, '--output') / f'.{path.name}'
    Image.fromarray(mask).save(temporary, 'PNG')
    os.replace(temporary, path)


def write_volume(volume: volumes.Volume, values: np.ndarray, path: Path) -> None:
    """A mask as a volume like the one it is of; whole or not at all."""
    temporary = make_folder(path.parent, '--output') / f'.{path.name}'  # the ending stays: it packs
    volume.write(values, temporary)
    os.replace(temporary, path)
