"""Folders of images: disease, normal and perhaps labels, or a data set laid out as ours are."""
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

import dataset
import shortcuts
from preparation import nifti, vignette
from preparation.writer import (
    AS_SLICES,
    LABEL_ALONE,
    DatasetWriter,
    Split,
    SplitFiller,
    read_pair,
    resize_image,
    resize_label,
)
from presets import PROFILE_OF
from utils import UserError

SOME = 10  # images of a folder that are looked at: whether they are labels
ORDER = 'the order is: disease images, normal images and, if any, labels of the disease images'


def from_folders(writer: DatasetWriter, sources: list[Path]) -> None:
    """Disease, normal and perhaps label folders, or one in our own layout. Raises UserError."""
    if len(sources) == 1:
        copy_layout(writer, sources[0])
        return
    if len(sources) > 3:
        raise UserError(f'--source: {len(sources)} folders, but {ORDER}')
    labels = labels_by_name(writer, sources[2]) if len(sources) == 3 else {}
    disease, normal = (images_by_name(writer, source, sources[2:]) for source in sources[:2])
    writer.normal = set(normal.values())
    check_order(sources, disease, normal, labels)
    for name in sorted(set(labels) - set(disease)):
        writer.left_out[labels.pop(name)] = LABEL_ALONE
    reader = Reader(writer)
    filler = SplitFiller(writer, list(disease), labels)
    for name, pair in writer.process(
            lambda name: reader.read(disease[name], labels.get(name), 'A'), filler.names,
            'disease'):
        if not pair:
            continue
        split = filler.next_split(pair[1] is not None)
        if split is None:
            writer.left_out[disease[name]] = writer.SURPLUS
        else:
            writer.add(split, 'A', name, *pair)
    filler.check()
    # normal images: at random, in the proportion of the disease images of train and test
    names = [str(name) for name in writer.rng.permutation(sorted(normal))]
    n_train, n_test = writer.counts['trainA'], writer.counts['testA']
    n_for_test = round(len(names) * n_test / max(1, n_test + n_train))
    for_test = set(names[:min(n_for_test, len(names) - 1) if n_train else n_for_test])
    for name, pair in writer.process(lambda name: reader.read(normal[name], None, 'B'), names,
                                     'normal'):
        if pair:
            writer.add('test' if name in for_test else 'train', 'B', name, pair[0])
    reader.tell(*sources[:2])


def check_order(sources: list[Path], disease: dict[str, Path], normal: dict[str, Path],
                labels: dict[str, Path]) -> None:
    """Raises UserError where labels belong to the normal images."""
    of_disease, of_normal = (len(labels.keys() & images) for images in (disease, normal))
    if of_normal > of_disease:
        raise UserError(f'--source: {of_normal} of {len(labels)} labels belong to images of '
                        f'{sources[1]}, {of_disease} to those of {sources[0]}: the first two '
                        f'folders look swapped; {ORDER}')
    if labels and not of_disease:
        raise UserError(f'--source: not one of {len(labels)} labels of {sources[2]}, as '
                        f'{min(labels.values()).name}, is named as an image of {sources[0]}, as '
                        f'{min(disease.values()).name}; {ORDER}, named as their images or with '
                        f'{dataset.LABEL_ENDING} appended')


class Reader:
    """Reads images and labels at the network's size, dermoscopy images (--profile) inside their
    dark corners, and tells what the originals give away, which prepared images show no more."""

    def __init__(self, writer: DatasetWriter, crops: bool = True) -> None:
        self.writer, self.size = writer, writer.config.size
        config = writer.config
        profile = config.profile or PROFILE_OF.get(config.dataset)
        self.is_dermoscopy = crops and profile == 'dermoscopy'
        self.looks: dict[str, dict[Path, shortcuts.Appearance]] = {'A': {}, 'B': {}}
        self.crops: dict[Path, vignette.Crop] = {}
        self.dark: list[Path] = []

    def read(self, path: Path, label_path: Path | None, domain: str
             ) -> tuple[Image.Image, np.ndarray | None] | None:
        """Image and label, bool H×W; None of one that is left out. Raises UserError."""
        image, label = read_pair(path, label_path)
        if self.is_dermoscopy:
            image, label, crop = vignette.cropped(image, label)
            if crop and crop.dark_share > vignette.MOST_DARK \
                    and not self.writer.config.keep_artifacts:
                self.writer.left_out[path] = vignette.DARK_CORNERS
                return None
            if crop:
                self.crops[path] = crop
        if vignette.show_dark_corners(np.asarray(image)):
            self.dark.append(path)
        resized = resize_image(image, self.size)
        look = shortcuts.appearance_of(path, resized)
        self.looks[domain][path] = look._replace(size=image.size)
        return resized, resize_label(label, self.size)

    def tell(self, *folders: Path) -> None:
        """Add to the summary what gives images away; raises UserError where the same image is in
        both folders, disease and normal."""
        writer, both = self.writer, shortcuts.equal_images(self.looks)
        if both:
            lines = [f'\n  {first} and {second}' for first, second in sorted(both)]
            raise UserError(f'{len(both)} image{"s are" if len(both) > 1 else " is"} in both '
                            'folders, disease and normal; remove from one (or from both):',
                            ''.join(lines))
        if self.is_dermoscopy:
            writer.details['crops'] = {str(path): list(crop[:4])
                                       for path, crop in sorted(self.crops.items())}
            vignette.note(writer.notes, len(self.crops), len(self.dark))
        elif self.dark:
            one = len(self.dark) == 1
            writer.notes.append(
                f'{len(self.dark)} image{" has" if one else "s have"} dark corners, as '
                f'{min(self.dark).name}, which may be learned in place of disease; of dermoscopy '
                'images give two folders, disease and normal, and --profile dermoscopy, which '
                'crops them')
        writer.notes += shortcuts.telling_looks(self.looks, writer.config,
                                                tuple(map(str, folders or ('trainA', 'trainB'))))


def copy_layout(writer: DatasetWriter, source: Path) -> None:
    """A data set in our own layout: every image keeps its place. Raises UserError."""
    splits = [split for split in ('test', 'val') if dataset.case_folder(source, split).is_dir()]
    if not (source / 'trainA').is_dir() and 'test' not in splits:
        raise UserError(f'--source {source}: one folder is a data set laid out as ours are, but it '
                        'holds no trainA, testA or test/images; or give two: disease and normal '
                        'images')
    if writer.config.split:
        raise UserError(f'--split: {source} is split already, and stays so; leave --split out')
    items = []  # split, domain, case
    for name in ('trainA', 'trainB', 'testB'):
        if (source / name).is_dir():
            items += [(name[:-1], name[-1], dataset.Case(path.stem, path))
                      for path in dataset.list_images(source / name, writer.problems)]
    for split in splits:
        items += [(split, 'A', case)
                  for case in dataset.find_cases(source, split, writer.problems)]
    items = [item for item in items if item[2].image not in writer.problems.reasons
             and writer.can_be_named(item[2].image, item[2].name)]
    writer.left_out |= writer.problems.left_out
    writer.problems.left_out = {}  # the summary tells of them
    writer.normal = {case.image for _, domain, case in items if domain == 'B'}
    reader = Reader(writer, crops=False)
    for (split, domain, case), pair in writer.process(
            lambda item: reader.read(item[2].image, item[2].label, item[1]), items, 'images'):
        if pair:
            writer.add(split, domain, case.name, *pair)
    reader.tell()
    counts = writer.counts
    writer.split = Split((counts['trainA'], counts['val/images'], counts['testA']), True)


def labels_by_name(writer: DatasetWriter, folder: Path) -> dict[str, Path]:
    """Labels below a folder by their image's name, without `_segmentation`. Raises UserError."""
    ending, labels = re.compile(rf'{dataset.LABEL_ENDING}\Z', re.I), {}
    for full_name, path in images_by_name(writer, folder, are_masks=True).items():
        name = ending.sub('', full_name)
        if name in labels:
            raise UserError(f'{path}: a label of the same image as {labels[name]}; remove one')
        if writer.can_be_named(path, name):
            labels[name] = path
    return labels


def images_by_name(writer: DatasetWriter, folder: Path, excluded: Sequence[Path] = (),
                   are_masks: bool = False) -> dict[str, Path]:
    """Images below a folder, not in `excluded` ones, by name: the path below it with _ for /,
    without ending, in composed Unicode (NFC; macOS splits ä). Raises UserError."""
    paths, left_out = dataset.find_images(folder, writer.problems, are_masks)
    images = {}
    for path in paths:
        if is_in(excluded, path):
            continue
        parts = path.relative_to(folder).with_suffix('').parts
        name = unicodedata.normalize('NFC', '_'.join(parts))
        if name in images:
            raise UserError(f'{path}: would be named as {images[name]} is; rename one')
        if are_masks or writer.can_be_named(path, name):
            images[name] = path
    left_out = {path: reason for path, reason in left_out.items() if not is_in(excluded, path)}
    some = sorted(images.values())[:SOME]
    if some and not are_masks and all(map(is_black_and_white, some)):
        raise UserError(f'--source {folder}: holds labels, as {some[0].name}, in place of images; '
                        f'{ORDER}')
    if not images:
        volumes = nifti.find_volumes(folder)
        advice = (f'; its {len(volumes)} NIfTI volume{"s" * (len(volumes) > 1)}: {AS_SLICES}'
                  if volumes else f'; {ORDER}')
        raise UserError(f'--source {folder}: '
                        f'{dataset.nothing_found(folder, left_out, writer.problems)}{advice}')
    writer.left_out |= left_out
    return images


def is_in(folders: Sequence[Path], path: Path) -> bool:
    """Whether a file lies below one of the folders."""
    return any(folder.resolve() in path.resolve().parents for folder in folders)


def is_black_and_white(path: Path) -> bool:
    """Whether a file holds two gray values, as labels do; False if it is broken."""
    try:
        colors = dataset.read_image(path).getcolors(2)
    except UserError:
        return False
    return colors is not None and all(len(set(color)) == 1 for _, color in colors)
