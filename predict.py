"""Segmentations of any images and volumes: --phase predict, and from Python

    from predict import Predictor
    predictor = Predictor('model/ISIC_params_0000300.pt')
    segmentations = predictor.predict([image, …])  # H×W×3 uint8 in, H×W bool out
"""
import io
import itertools
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import checkpoint as checkpoints
import dataset
import image_files
from config import OPTIONS, Config, resolve
from inference.model_selection import chosen_rule
from inference.plausibility import mask_warnings, small_mask
from inference.postprocess import resize_map, slices_with_lesion, to_bytes, to_segmentation
from inference.soft_masks import images_at_a_time, mask_network, outputs
from preparation import nifti
from reporting.tables import TableWriter
from runtime import preflight, targets
from runtime.files import TEXT, atomic_write, find_files, make_folder, remove_temporary
from runtime.lock import locked
from runtime.threads import cpu_count, prefetch
from stages.pseudo_labels import choose_teacher
from utils import UserError, pick_device, printable, progress_interval

COLUMNS = ('file', 'slice', 'lesion_px', 'lesion_percent', 'lesion_mm2', 'lesion_ml', 'note')
MAX_NOTES = 5  # printed; the table holds all


class Prediction(NamedTuple):
    """The lesions of one image or volume, in its own size."""
    segmentation: np.ndarray  # H×W bool; of a volume X×Y×Z uint8, 0 and 1
    probability: np.ndarray  # H×W or X×Y×Z float32 in [0, 1]: the soft mask
    note: str = ''  # why the segmentation, or a part of a volume's, is empty


class Predictor:
    """A trained network that segments the lesions of images. Post-processing is the same as in a
    test: what val chose for the checkpoint (`val.json`), else the default. An image whose
    soft mask nowhere reaches `presence_threshold` holds no lesion.
    config      the Config that the network runs with
    network     the network that makes soft masks, on `device`, in eval mode
    rule, exponent  post-processing, one of inference.postprocess.RULES, and the CRF's exponent
    stage1      the Predictor of the stage-1 network whose soft masks a published stage 2 takes as
                conditioning images; None for all other networks
    files       the checkpoints that were read"""

    def __init__(self, checkpoint: str | Path, device: str = 'auto', **options: Any) -> None:
        """`checkpoint` is a file of any stage, ours or the authors'; `device` auto, cpu, cuda,
        cuda:1 or mps; `options` those of main.py that matter to masks (`postprocess='otsu'`, …).
        Raises utils.UserError for a file that is no checkpoint and for bad options or values."""
        source = checkpoints.read(Path(checkpoint))
        if unknown := options.keys() - OPTIONS.keys():
            raise UserError(f'Predictor: {sorted(unknown)[0]} is no option; '
                            'python main.py --help lists them')
        config = resolve(options | {'phase': 'predict', 'device': device}, source.config,
                         str(checkpoint))
        self.device = pick_device(device)
        self.config = preflight.with_usable_amp(config, self.device)
        self.network = mask_network(source, self.config, self.device)
        self.rule, self.exponent = chosen_rule(self.config, source)
        if self.rule == 'none':
            raise UserError('--postprocess none: a prediction needs a rule; for soft masks alone '
                            'use --probability True')
        self.files = [source.path]
        self.stage1: Predictor | None = None
        if self.config.takes_conditioning:
            teacher = choose_teacher(self.config, source.path.parent)
            if teacher is None:
                raise UserError(f'{checkpoint}: needs the stage-1 network whose soft masks it '
                                'takes; name it with --teacher')
            self.stage1 = Predictor(teacher, device, tta=self.config.tta)
            self.files += self.stage1.files

    def predict(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The segmentation, H×W bool, of each image: uint8 in [0, 255], H×W×3 (RGB) or H×W (gray),
        of any sizes, or one array N×H×W×3. Raises ValueError for anything else."""
        return [prediction.segmentation for prediction in self.predict_each(images)]

    def probabilities(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The soft mask, H×W float32 in [0, 1], of each image; images as for `predict`."""
        return [probability for _, probability in self._soft_masks(images)]

    def predict_each(self, images: Iterable[np.ndarray]) -> Iterator[Prediction]:
        """As `predict`, one after the other for any number of images, with their soft masks."""
        return prefetch(self._to_prediction, self._soft_masks(images), cpu_count())

    def _soft_masks(self, images: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(image H×W×3 uint8, soft mask H×W float32) of each."""
        if isinstance(images, np.ndarray) and (images.ndim < 3 or images.shape[2:] in ((1,), (3,))):
            raise ValueError('a single image; give a list of images, as [image]')
        config, images = self.config, iter(images)
        while arrays := list(itertools.islice(images, images_at_a_time(config, self.device))):
            chunk = [as_rgb(array) for array in arrays]
            batch = {'image': self._stack(chunk, config.img_ch)}
            if self.stage1:
                stage1_masks = [Image.fromarray(to_bytes(mask)) for _, mask
                                in self.stage1._soft_masks(np.asarray(image) for image in chunk)]
                batch['mask'] = self._stack(stage1_masks, 1)
            for image, output in zip(chunk, outputs(self.network, batch, config, self.device),
                                     strict=True):
                yield np.asarray(image), resize_map(output.mask, image.size)

    def _stack(self, images: list[Image.Image], channels: int) -> Tensor:
        """B×channels×H×W in [-1, 1] at the network's size."""
        mode = 'RGB' if channels == 3 else 'L'
        resized = (dataset.resize(image.convert(mode), self.config.size) for image in images)
        return dataset.stack([dataset.to_tensor(image) for image in resized])

    def _to_prediction(self, image_and_probability: tuple[np.ndarray, np.ndarray]) -> Prediction:
        image, probability = image_and_probability
        if probability.max() < self.config.presence_threshold:
            return Prediction(np.zeros(probability.shape, bool), probability,
                              self.too_low(probability))
        segmentation = to_segmentation(to_bytes(probability), self.rule, image, self.exponent,
                                       self.config)
        return Prediction(segmentation, probability, '' if segmentation.any() else
                          self.nothing_left(probability))

    def too_low(self, probability: np.ndarray) -> str:
        """Why there is no lesion where the soft mask is below --presence_threshold."""
        return (f'highest soft value {floor(probability.max())}, below --presence_threshold '
                f'{self.config.presence_threshold:g}')

    def nothing_left(self, probability: np.ndarray) -> str:
        """Why there is no lesion where the soft mask reaches --presence_threshold."""
        return (f'highest soft value {floor(probability.max())}, but --postprocess {self.rule} '
                'leaves nothing of the soft mask; try another')


def floor(value: float) -> str:
    """A soft value with two decimals, cut off, so that what is below a threshold looks so."""
    return f'{math.floor(100 * value + 1e-4) / 100:.2f}'


def as_rgb(image: np.ndarray) -> Image.Image:
    """H×W×3, H×W×1 or H×W uint8 as an RGB image; raises ValueError for other arrays."""
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.dtype != np.uint8 or not image.size or image.ndim != 2 and image.shape[2:] != (3,):
        raise ValueError('an image is an array H×W×3 or H×W of uint8, 0 to 255, but this one is '
                         f'{image.dtype} of shape {image.shape}')
    return Image.fromarray(image).convert('RGB')


def run(config: Config, predictor: Predictor) -> int:
    """Masks of all in --input to --output; returns the exit code, 1 where files were left out."""
    problems = dataset.Problems()
    paths = check_paths(config)
    found = find_paths(paths.input)
    names = find_input(paths.input, found, config.modality, problems)
    masks = plan_masks(paths, names, config.probability, problems)
    files = [path for written in masks.values() for path in written]
    small_masks = []  # of a volume the slice that looks most diseased
    with locked(Path(config.output), '--output'):
        check_paths(config)  # again: another program may have written there
        targets.check(files, [paths.input, *found, *predictor.files], f'--output {paths.output}',
                      config.overwrite)
        say_what_is_slow(predictor.rule, sum(map(nifti.is_volume, masks)))
        with (closing(PredictionWriter(paths, masks)) as writer, how_far_it_came(writer),
              tqdm(total=len(masks), desc='predicting', unit=' files',
                   mininterval=progress_interval()) as bar):
            images = [path for path in masks if not nifti.is_volume(path)]
            for path, prediction in predict_images(predictor, images, config.num_workers, problems):
                writer.add_image(path, names[path], prediction)
                small_masks.append(small_mask(prediction.probability))
                bar.update()
            for path in filter(nifti.is_volume, masks):
                volume = problems.try_to_read(path, nifti.read)
                if volume and (prediction := try_to_predict(predictor, volume, problems)):
                    writer.add_volume(names[path], volume, prediction)
                    fullest = prediction.probability.mean((0, 1)).argmax()
                    small_masks.append(small_mask(prediction.probability[..., fullest]))
                    bar.update()
    writer.say_what_is_empty()
    print(f'{writer.count} predicted by {predictor.rule}, {writer.with_lesion} with lesions; masks '
          f'are in {paths.output}, areas in {paths.table}')
    for warning in mask_warnings(small_masks):
        print(warning)
    return problems.report()


def say_what_is_slow(rule: str, volumes: int) -> None:
    """Print it where post-processing of volumes takes longer than their network."""
    if volumes and rule == 'crf':
        print('--postprocess crf is slow in volumes: about a quarter of a second for each slice of '
              '180×180 px; --postprocess otsu is quick')


@contextmanager
def how_far_it_came(writer: 'PredictionWriter') -> Iterator[None]:
    """Where a signal ends a prediction, print what is whole and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        print(printable(f'{writer.count} of {len(writer.masks)} are predicted; their masks are '
                        f'whole, and listed in {writer.paths.table}; the same command with '
                        '--overwrite True begins anew'), file=sys.stderr)
        raise


def predict_images(predictor: Predictor, paths: list[Path], threads: int,
                   problems: dataset.Problems) -> Iterator[tuple[Path, Prediction]]:
    """Path and prediction of each file that can be read; the others go to `problems`."""
    def read(path: Path) -> np.ndarray | None:
        image = problems.try_to_read(path, dataset.read_image)
        return None if image is None else np.asarray(image)

    pairs = ((path, image) for path, image in zip(paths, prefetch(read, paths, threads),
                                                  strict=True) if image is not None)
    for_paths, for_network = itertools.tee(pairs)  # at most a few batches apart
    predictions = predictor.predict_each(image for _, image in for_network)
    return zip((path for path, _ in for_paths), predictions, strict=True)


def predict_volume(predictor: Predictor, volume: nifti.Volume) -> Prediction:
    """Segmentation and soft mask X×Y×Z in the canonical orientation. Slices with hardly any head
    hold no lesion, nor do others than `slices_with_lesion`."""
    segmentation = np.zeros(volume.values.shape, np.uint8)
    probability = np.zeros(volume.values.shape, np.float32)
    volume.warn()
    slices = [z for z in volume.slices if volume.head_share(z) >= nifti.LEAST_HEAD]
    if not slices:
        tqdm.write(printable(f'{volume.path}: no slice holds enough head, so none was segmented'),
                   file=sys.stderr)
    predictions = tqdm(predictor.predict_each(volume.image(z) for z in slices), volume.path.name,
                       len(slices), unit=' slices', mininterval=progress_interval(), leave=False)
    for z, prediction in zip(slices, predictions, strict=True):
        segmentation[..., z] = volume.to_plane(prediction.segmentation.astype(np.uint8))
        probability[..., z] = volume.to_plane(prediction.probability)
    highest = probability.max((0, 1))
    unsure = segmentation.any((0, 1)) & ~slices_with_lesion(highest,
                                                            predictor.config.presence_threshold)
    segmentation[..., unsure] = 0
    note = ('left empty, as soft values are higher elsewhere in the volume: slices '
            + listed(unsure)) * bool(unsure.any())
    if not segmentation.any():
        note = 'no slice holds enough head' if not slices else (
            predictor.too_low(probability)
            if highest.max() < predictor.config.presence_threshold
            else predictor.nothing_left(probability))
    return Prediction(segmentation, probability, note)


def listed(slices: np.ndarray) -> str:
    """The numbers of at most ten slices, of N bool."""
    numbers = np.flatnonzero(slices).tolist()
    return ' '.join(map(str, numbers[:10])) + ' …' * (len(numbers) > 10)


def try_to_predict(predictor: Predictor, volume: nifti.Volume,
                   problems: dataset.Problems) -> Prediction | None:
    """As `predict_volume`; where it fails, for whatever reason, the volume goes to `problems` and
    the others of a folder go on."""
    try:
        return predict_volume(predictor, volume)
    except Exception as error:
        reason = ' '.join(f'{type(error).__name__} {error}'.split())
        problems.add(volume.path, f'cannot be predicted ({reason})')
        return None


class Paths(NamedTuple):
    """--input and --output."""
    input: Path
    output: Path
    to_file: bool  # whether the output is one file, not a folder
    table: Path  # of lesion areas


def check_paths(config: Config) -> Paths:
    """Raises UserError where --input or --output is missing or unfit, or files would be lost."""
    for name in ('input', 'output'):
        if not getattr(config, name):
            raise UserError(f'--{name}: --phase predict needs it: --input PATH --output PATH')
    if len(config.input) > 1:
        raise UserError(f'--input: --phase predict takes one file or folder, but these are '
                        f'{len(config.input)}; give the folder that holds them')
    source, output = Path(config.input[0]), Path(config.output)
    if not source.exists():
        raise UserError(f'--input {source}: no such file or folder')
    ending = output.name[len(nifti.stem(output)):]
    is_folder = output.is_dir() or config.output.endswith(('/', os.sep))
    to_file = not is_folder and ending.lower() in ('.png', *nifti.SUFFIXES)
    flag = f'--output {output}'
    if to_file and not source.is_file():
        raise UserError(f'{flag}: a file, but --input {source} is a folder; give a folder')
    if to_file and nifti.is_volume(source) != nifti.is_volume(output):
        raise UserError(f'{flag}: masks of volumes are .nii or .nii.gz, those of images .png')
    # of a folder of images the masks make a folder, whatever dots its name has
    if not (to_file or is_folder) and output.suffix and (
            source.is_file() or output.suffix.lower() in dataset.IMAGE_SUFFIXES):
        raise UserError(f'{flag}: neither a folder nor a file that masks can be: .png for images, '
                        '.nii or .nii.gz for volumes; the name of a folder may end with /')
    folders = [source, source.parent] if source.is_file() and not to_file else [source]
    if targets.place(output) in map(targets.place, folders):
        raise UserError(f'{flag}: would write over --input; give another place')
    if source.is_dir() and targets.place(output).startswith(targets.place(source) + os.sep):
        raise UserError(f'{flag}: lies in --input, where masks would be taken for images next '
                        'time; give another place')
    table = output.with_name(f'{nifti.stem(output)}.csv') if to_file else output / 'predictions.csv'
    paths = Paths(source, output, to_file, table)
    written = masks_of(paths, output, config.probability) if to_file else []
    targets.check([table, *written], [source], flag, config.overwrite)
    holds_files = output.is_dir() and any(path.name[0] != '.' for path in output.iterdir())
    if holds_files and not config.overwrite:
        raise UserError(f'{flag}: holds files already; --overwrite True replaces what has the same '
                        'name, or give another place')
    if table.exists() and not is_table(table):
        raise UserError(f'{flag}: {table} exists already and is no table of predictions, so it '
                        'stays; give another place')
    return paths


def is_table(path: Path) -> bool:
    """Whether a file is a table of predictions, or empty."""
    if not path.is_file():
        return False
    with open(path, **TEXT) as file:
        header = file.readline().strip()
    return header in ('', ','.join(COLUMNS), ','.join(COLUMNS[:-1]))  # as earlier versions had it


def masks_of(paths: Paths, name: Path, with_probability: bool) -> list[Path]:
    """Where the masks of an input, `name` in the folder --input, are written: the segmentation and,
    if asked for, the soft mask. A file that --output names has the ending as it was given."""
    path = paths.output if paths.to_file else paths.output / name
    stem = nifti.stem(path)
    folder_ending = '.nii.gz' if nifti.is_volume(name) else '.png'
    ending = path.name[len(stem):] if paths.to_file else folder_ending
    suffixes = ('', '_probability') if with_probability else ('',)
    return [path.with_name(f'{stem}{suffix}{ending}') for suffix in suffixes]


def plan_masks(paths: Paths, names: dict[Path, Path], with_probability: bool,
               problems: dataset.Problems) -> dict[Path, list[Path]]:
    """Where the masks of each of `find_input` are written. Of inputs whose masks would take the
    same place, or one's file that of another's folder, only the first counts; the others go to
    `problems`, as do names that are too long."""
    planned, taken = {}, {targets.place(paths.table): 'the table'}
    folders: dict[str, str] = {}  # of what is taken
    for path, name in names.items():
        masks = masks_of(paths, name, with_probability)
        places = list(map(targets.place, masks))
        above = [str(folder) for folder in Path(places[0]).parents]
        others = [*(taken.get(one) or folders.get(one) for one in places), *map(taken.get, above)]
        if other := next(filter(None, others), None):
            problems.add(path, f'its masks would take the place of {other}; rename one')
        elif any(len(os.fsencode(mask.name)) > targets.MAX_NAME for mask in masks):
            problems.add(path, 'the names of its masks would be too long; rename it')
        else:
            planned[path] = masks
            taken |= dict.fromkeys(places, f'those of {name}')
            folders |= dict.fromkeys(above, f'the folder of those of {name}')
    return planned


def find_paths(source: Path) -> list[Path]:
    """All files named as images and volumes below a folder, or this file itself."""
    endings = (*image_files.IMAGE_SUFFIXES, *image_files.DICOM_SUFFIXES, *nifti.SUFFIXES)
    return [source] if source.is_file() else find_files(source, endings)


def find_input(source: Path, found: list[Path], modality: str,
               problems: dataset.Problems) -> dict[Path, Path]:
    """Of the `found` ones those to predict, each with its path in the folder `source`, or this file
    itself. Hidden files, labels and other modalities of BraTS are skipped. Raises UserError for
    none or an unreadable file."""
    if source.is_file():
        (nifti.read if nifti.is_volume(source) else dataset.read_image)(source)
        if reason := reason_to_skip(source, modality):
            kind = 'a label' if reason == 'labels' else reason
            print(printable(f'{source}: by its name {kind}, which in a folder is skipped'))
        return {source: Path(source.name)}
    names, skipped = {}, Counter()
    paths = problems.without_broken_links(found)
    no_images = image_files.no_images(
        source, [path for path in paths if not nifti.is_volume(path)])
    for path in paths:
        if reason := no_images.get(path) or reason_to_skip(path, modality):
            skipped[reason] += 1
        else:
            names[path] = path.relative_to(source)
    if skipped:
        print('skipped: ' + ', '.join(f'{count} {reason}' for reason, count in skipped.items()))
    if not names:
        raise UserError(f'--input {source}: '
                        f'{dataset.nothing_found(source, no_images, problems)}; and no volumes '
                        f'({", ".join(nifti.SUFFIXES)})')
    return names


def reason_to_skip(path: Path, modality: str) -> str:
    """What a file is by its name, if it is not to be predicted; else ''."""
    if not nifti.is_volume(path):
        return ''
    kind = (nifti.case_and_kind(path) or ('', modality))[1]
    if kind == 'seg':
        return 'labels'
    return '' if kind == modality else f'of another --modality than {modality}'


def in_digits(value: float) -> str:
    """A size with four decimals, or where it is small (voxels of microns) five digits."""
    return f'{value:.4f}' if value >= 0.1 else f'{value:.5g}'


class PredictionWriter:
    """Writes masks to --output, each whole or not at all, and predictions.csv, the lesion areas: a
    row for each image; of a volume one for each slice that holds a lesion, and one of the whole."""

    def __init__(self, paths: Paths, masks: dict[Path, list[Path]]) -> None:
        """`masks` are those of `plan_masks`. Removes what a killed program left of them."""
        self.paths, self.masks = paths, masks
        self.count = self.with_lesion = 0  # images and volumes
        self.empty: list[str] = []  # those without a lesion, and why
        make_folder(paths.table.parent, '--output')
        files = itertools.groupby([paths.table, *itertools.chain(*masks.values())],
                                  lambda path: path.parent)
        for folder, of_folder in files:
            remove_temporary(folder, [path.name for path in of_folder])
        self._rows = io.StringIO(newline='')
        self._table = TableWriter(self._rows, COLUMNS)

    def close(self) -> None:
        """Write the table of what was predicted."""
        with atomic_write(self.paths.table) as temporary:
            temporary.write_text(self._rows.getvalue(), newline='', **TEXT)

    def say_what_is_empty(self) -> None:
        """Print why the first of the empty segmentations are empty."""
        for text in self.empty[:MAX_NOTES]:
            print(printable(f'empty: {text}'))
        if (more := len(self.empty) - MAX_NOTES) > 0:
            print(f'… and {more} more; see the column note')

    def add_image(self, path: Path, name: Path, prediction: Prediction) -> None:
        """`name` is the path of the image, `path`, in --input."""
        self._write_masks(path, name, prediction,
                          lambda mask, path: Image.fromarray(to_bytes(mask)).save(path, 'PNG'))
        self._write_row(name, prediction.segmentation, note=prediction.note)

    def add_volume(self, name: Path, volume: nifti.Volume, prediction: Prediction) -> None:
        """Masks X×Y×Z of a volume as volumes of its axes; `name` is its path in --input."""
        self._write_masks(volume.path, name, prediction, volume.write)
        segmentation = prediction.segmentation
        for z in np.flatnonzero(segmentation.any((0, 1))):
            plane = segmentation[..., z]
            mm2 = int(plane.sum()) * volume.pixel_mm2
            self._write_row(name, plane, slice=int(z), lesion_mm2=in_digits(mm2))
        ml = int(segmentation.sum()) * volume.voxel_ml
        self._write_row(name, segmentation, lesion_ml=in_digits(ml), note=prediction.note)

    def _write_masks(self, path: Path, name: Path, prediction: Prediction,
                     write: Callable[[np.ndarray, Path], None]) -> None:
        targets_of_path = self.masks[path]
        make_folder(targets_of_path[0].parent, '--output')
        for target, mask in zip(targets_of_path, prediction, strict=False):
            with atomic_write(target) as temporary:
                write(mask, temporary)
        self.count += 1
        if prediction.segmentation.any():
            self.with_lesion += 1
        else:
            self.empty.append(f'{name}: {prediction.note}')

    def _write_row(self, name: Path, segmentation: np.ndarray, **columns: Any) -> None:
        lesion = int(segmentation.sum())
        percent = f'{100 * lesion / segmentation.size:.3f}'
        self._table.writerow({'file': str(name), 'lesion_px': lesion, 'lesion_percent': percent}
                             | columns)
