"""Folders of images: disease, normal and perhaps labels, or a data set laid out as ours are."""
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import dataset
from preparation.writer import DatasetWriter, Split, SplitFiller, read_resized_pair
from utils import UserError


def from_folders(writer: DatasetWriter, sources: list[Path]) -> None:
    """Disease, normal and perhaps label folders, or one in our own layout. Raises UserError."""
    if len(sources) == 1:
        copy_layout(writer, sources[0])
        return
    if len(sources) > 3:
        raise UserError(f'--source: {len(sources)} folders, but folders are disease and normal '
                        'images, and a third one labels')
    labels = labels_by_name(writer, sources[2]) if len(sources) == 3 else {}
    disease, normal = (images_by_name(writer, source, sources[2:]) for source in sources[:2])
    for name in sorted(set(labels) - set(disease)):
        writer.problems.add(labels.pop(name), f'label without an image: {sources[0]} has no {name}')
    size = writer.config.size
    filler = SplitFiller(writer, list(disease), labels)
    for name, pair in writer.process(
            lambda name: read_resized_pair(disease[name], labels.get(name), size), filler.names,
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
    for name, pair in writer.process(lambda name: read_resized_pair(normal[name], None, size),
                                     names, 'normal'):
        if pair:
            writer.add('test' if name in for_test else 'train', 'B', name, pair[0])


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
    for (split, domain, case), pair in writer.process(
            lambda item: read_resized_pair(item[2].image, item[2].label, writer.config.size),
            items, 'images'):
        if pair:
            writer.add(split, domain, case.name, *pair)
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
    if not images:
        raise UserError(f'--source {folder}: '
                        f'{dataset.nothing_found(folder, left_out, writer.problems)}')
    writer.left_out |= left_out
    return images


def is_in(folders: Sequence[Path], path: Path) -> bool:
    """Whether a file lies below one of the folders."""
    return any(folder.resolve() in path.resolve().parents for folder in folders)
