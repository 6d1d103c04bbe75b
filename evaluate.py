"""Masks of any origin against labels: --phase evaluate."""
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

import dataset
from config import Config
from image_files import MASK_VALUES, read_label
from inference.metrics import METRIC_INFO, all_metrics, paired_bootstrap, summarize
from preparation import nifti
from preparation.folders import is_in
from reporting import report, visualize
from reporting.results import MAX_IN_REPORT, metrics_record, table, write_metrics
from reporting.tables import rounded
from runtime import targets
from runtime.files import make_folder, remove_temporary
from runtime.lock import locked
from runtime.threads import cpu_count, prefetch
from utils import UserError, printable, progress_interval

# what a mask's or label's name has behind that of its image
ENDING = re.compile(r'((^|[\s_.-]+|(?<=\w))(segmentation|masks?|labels?|ground_?truth|annotations?'
                    r'|predictions?)|(^|[\s_.-]+)(segm?|gt|pred|lesion|manual))+$', re.I)
SOFT_MASK = '_probability'  # as predict names them
FILES = ('metrics.csv', 'metrics.json', 'report.html')

Unpaired = dict[str, list[Path]]  # files without a partner, by what there is not
Key = tuple[str, ...]  # folders below --input or --labels, and the image's name


class Scored(NamedTuple):
    """A mask compared with its label."""
    metrics: dict[str, float | None]
    mask: np.ndarray  # H×W bool; of a volume the axial slice with the largest lesion
    label: np.ndarray  # likewise


def run(config: Config) -> int:
    """Metrics of the masks --input against --labels; returns the exit code, 1 where files could not
    be used; what has no partner is said, and is no failure."""
    inputs, labels, folder = check_paths(config)
    problems = dataset.Problems()
    unpaired: Unpaired = {}
    pairs = find_pairs(inputs, labels, problems, unpaired)
    with locked(folder, '--output'):
        remove_temporary(make_folder(folder, '--output'), FILES)
        rows = [[{'name': name, **scored.metrics} for name, scored
                 in score(of_input, problems, f'scoring {source}')]
                for source, of_input in zip(inputs, pairs, strict=True)]
        if not all(rows):
            raise UserError(f'--input {inputs[rows.index([])]}: not one mask could be scored',
                            f'\n{problems.listing}')
        summaries = [summarize(of_input) for of_input in rows]
        compared = difference(*rows) if len(rows) == 2 else {}
        left_out = list(map(str, dict.fromkeys([*problems.reasons, *chain(*unpaired.values())])))
        write(folder, config, left_out, rows, summaries, compared)
        write_report(folder, config, pairs, rows, compared)
    count = len(set().union(*pairs))
    for source, of_input, summary in zip(inputs, rows, summaries, strict=True):
        print(f'{source}\n' + table(summary, len(of_input), count, 'masks were scored'))
    if compared:
        print(table(compared, compared['pairs']['JA'], count, 'pairs: second minus first'))
    for reason, paths in unpaired.items():
        more = f', like {len(paths) - 1} more' if len(paths) > 1 else ''
        print(printable(f'not scored, since {reason} belongs to it: {paths[0]}{more}'))
    print(f'results are in {folder}; open {folder / "report.html"}')
    return problems.report()


def check_paths(config: Config) -> tuple[list[Path], Path, Path]:
    """--input, --labels and the folder of the results; raises UserError where one is missing or
    unfit, or files would be lost."""
    for name in ('input', 'labels'):
        if not getattr(config, name):
            raise UserError(f'--{name}: --phase evaluate needs it: --input MASKS --labels LABELS')
    inputs, labels = [Path(path) for path in config.input], Path(config.labels)
    if len(inputs) > 2:
        raise UserError(f'--input: {len(inputs)} of them, but two at most can be compared')
    for flag, path in (*(('input', path) for path in inputs), ('labels', labels)):
        if not path.exists():
            raise UserError(f'--{flag} {path}: no such file or folder')
        if path.is_file() != labels.is_file():
            raise UserError(f'--{flag} {path}: give two files or two folders, of masks and labels')
    places = [targets.place(path) for path in (*inputs, labels)]
    if len(set(places)) < len(places):
        raise UserError(f'--input {inputs[-1]}: given twice, or the same as --labels; name the '
                        'masks with --input and their labels with --labels')
    name = nifti.stem(inputs[0].resolve()) if labels.is_file() else inputs[0].resolve().name
    folder = Path(config.output or Path(config.result_dir) / 'evaluate' / name)
    targets.check([folder / name for name in FILES], [*inputs, labels],
                  '--output ' + str(folder), config.overwrite or not config.output)
    return inputs, labels, folder


# ------------------------------------------------------------------------------------- pairing


def find_pairs(inputs: Sequence[Path], labels: Path, problems: dataset.Problems,
               unpaired: Unpaired) -> list[dict[str, tuple[Path, Path]]]:
    """For each input, (mask, label) by name; what has no partner goes to `unpaired`. Raises
    UserError where nothing has one."""
    if labels.is_file():
        return [{labels.name: (source, labels)} for source in inputs]
    of_labels = files_by_key(labels, inputs, problems)
    pairs = []
    for source in inputs:
        masks = files_by_key(source, [labels], problems)
        found = match(masks, of_labels)
        if not found:
            first, label = next(iter(masks.values())), next(iter(of_labels.values()))
            raise UserError(f'--input {source}: no mask has a label by its name: there are '
                            f'{first.name} and {label.name}; a mask of x.png is x.png or '
                            'x_mask.png, its label x.png or x_segmentation.png')
        pairs.append({'/'.join(key): (masks[found[key]], of_labels[key]) for key in of_labels
                      if key in found})
        without_mask = [path for key, path in of_labels.items() if key not in found]
        others = set(masks) - set(found.values())
        for reason, paths in ((f'no mask in {source}', without_mask), (
                f'no label in {labels}', [masks[key] for key in masks if key in others])):
            if paths:
                unpaired.setdefault(reason, []).extend(paths)
    return pairs


def files_by_key(folder: Path, excluded: Sequence[Path], problems: dataset.Problems
                 ) -> dict[Key, Path]:
    """The images and volumes below a folder, not in `excluded` ones, by what their image is called;
    left out are soft masks that predict wrote beside, and of BraTS the images beside their
    segmentation. Raises UserError where there is none."""
    images, left_out = dataset.find_images(folder, problems, are_masks=True)
    excluded = [one for one in excluded if is_in([folder], one)]
    paths = sorted(path for path in {*images, *nifti.find_volumes(folder)}
                   if not is_in(excluded, path) and path not in problems.reasons)
    stems = {(path.parent, nifti.stem(path)) for path in paths}
    files: dict[Key, Path] = {}
    for path in sorted(paths, key=is_modality):  # what may be a segmentation first
        if (path.parent, nifti.stem(path).removesuffix(SOFT_MASK)) in stems - {
                (path.parent, nifti.stem(path))}:
            continue
        key = key_of(path, folder)
        if key not in files:
            files[key] = path
        elif is_modality(path) and not is_modality(files[key]):
            problems.left_out[path] = 'images beside their segmentation'
        else:
            problems.add(path, f'belongs to the same image as {files[key].name}; remove one')
    if not files:
        raise UserError(f'{folder}: {dataset.nothing_found(folder, left_out, problems)}; and no '
                        f'volumes ({", ".join(nifti.SUFFIXES)})')
    return files


def key_of(path: Path, folder: Path) -> Key:
    """The folders of a mask or label below `folder`, and the name of its image: without ENDING, and
    of volumes named as in BraTS without their kind."""
    case = nifti.is_volume(path) and nifti.case_and_kind(path)
    name = case[0] if case else ENDING.sub('', nifti.stem(path))
    folders = path.relative_to(folder).parts[:-1]
    if case and folders and nifti.is_volume(path.parent):  # X_seg.nii/, which holds the file
        folders = folders[:-1]
    return *folders, name


def is_modality(path: Path) -> bool:
    """Whether a file is named as an image of BraTS: FLAIR, T1, …."""
    case = nifti.is_volume(path) and nifti.case_and_kind(path)
    return bool(case) and case[1] != 'seg'


def match(masks: dict[Key, Path], labels: dict[Key, Path]) -> dict[Key, Key]:
    """The mask of each label that has one, by key: of the same folders and name, else of the same
    name where no other mask or label has it. Case and the form of Unicode do not matter."""
    def plain(key: Key) -> Key:
        return tuple(map(targets.without_case, filter(None, key)))

    by_plain = {plain(key): key for key in masks}
    found = {key: by_plain[plain(key)] for key in labels if plain(key) in by_plain}
    taken, by_name = set(found.values()), ({}, {})
    for names, keys in zip(by_name, (masks, labels), strict=True):
        for key in keys:
            names.setdefault(plain(key)[-1:], []).append(key)
    for name, (key, *more) in by_name[1].items():
        candidates = by_name[0].get(name, [])
        if name and not more and key not in found and len(candidates) == 1 \
                and candidates[0] not in taken:
            found[key] = candidates[0]
    return found


# ------------------------------------------------------------------------------------- scoring


def score(pairs: dict[str, tuple[Path, Path]], problems: dataset.Problems, title: str
          ) -> Iterator[tuple[str, Scored]]:
    """Each pair that can be compared; the others go to `problems`."""
    def score_one(name: str) -> Scored | None:
        mask, label = pairs[name]
        return problems.try_to_read(mask, lambda _: compare(mask, label))

    has_volumes = any(nifti.is_volume(mask) for mask, _ in pairs.values())
    results = prefetch(score_one, pairs, 1 if has_volumes else cpu_count())  # volumes need memory
    for name, scored in zip(pairs, tqdm(results, title, len(pairs), unit=' masks', leave=False,
                                        mininterval=progress_interval()), strict=True):
        if scored:
            yield name, scored


def compare(mask_path: Path, label_path: Path) -> Scored:
    """Metrics of a mask; raises UserError for files that cannot be compared."""
    if nifti.is_volume(mask_path) != nifti.is_volume(label_path):
        kinds = ('an image', 'a volume')[::1 if nifti.is_volume(label_path) else -1]
        raise UserError(f'{mask_path}: {kinds[0]}, but {label_path.name} is {kinds[1]}')
    if not nifti.is_volume(mask_path):
        mask, label = read_label(mask_path), read_label(label_path)
        if mask.shape != label.shape:
            sizes = ['×'.join(map(str, one.shape[::-1])) for one in (mask, label)]
            raise UserError(f'{mask_path}: {sizes[0]} px, but {label_path.name} is {sizes[1]} px')
        return Scored(all_metrics(mask, label), mask, label)
    volume, label_volume = nifti.read(mask_path), nifti.read(label_path)
    mask = classes_to_lesion(volume, volume.values)
    label = classes_to_lesion(label_volume, nifti.in_axes_of(volume, label_volume))
    areas = label.sum((0, 1)) if label.any() else mask.sum((0, 1))
    planes = [one[..., areas.argmax()][::-1, ::-1].T for one in (mask, label)]  # the usual view
    return Scored(all_metrics(mask, label, volume.spacing), *planes)


def classes_to_lesion(volume: nifti.Volume, values: np.ndarray) -> np.ndarray:
    """Where a volume of classes, 0, 1, … or 0 and another, is not 0; raises UserError for others,
    as soft masks and images."""
    lesion = values != 0
    found = np.unique(values[lesion])
    if len(found) > MASK_VALUES and (found == np.rint(found)).all():
        raise UserError(f'{volume.path}: {len(found)} different values up to {found[-1]:g}, so it '
                        'is an image, not a segmentation, which has 0 where no lesion is and at '
                        f'most {MASK_VALUES} classes; give the segmentation (…_seg)')
    if len(found) > 1 and (found != np.rint(found)).any() or (found < 0).any() \
            or not np.isfinite(found).all():
        raise UserError(f'{volume.path}: a mask has whole numbers, 0 where no lesion is, but this '
                        f'one has values as {found[0]:g}; threshold a soft mask first')
    return lesion


def difference(first: list[dict[str, Any]], second: list[dict[str, Any]]
               ) -> dict[str, dict[str, float | None]]:
    """Over the cases where a metric is defined in both: the means of the first and the second, that
    of second minus first, its 95 % interval (paired bootstrap), and how many `pairs` there are."""
    by_name = {row['name']: row for row in second}
    result: dict[str, dict] = {name: {} for name in (
        'mean of the first', 'mean of the second', 'difference', '95 % from', '95 % to', 'pairs')}
    for short in METRIC_INFO:
        pairs = [(row[short], by_name[row['name']][short]) for row in first
                 if row.get(short) is not None
                 and by_name.get(row['name'], {}).get(short) is not None]
        if not any(short in row for row in first):
            continue
        one, other = zip(*pairs, strict=True) if pairs else ((), ())
        means = [float(np.mean(values)) if pairs else None
                 for values in (one, other, np.subtract(other, one))]
        for name, value in zip(result, (*means, *paired_bootstrap(one, other), len(pairs)),
                               strict=True):
            result[name][short] = value
    return result


# --------------------------------------------------------------------------------------- files


def write(folder: Path, config: Config, left_out: list[str],
          rows: list[list[dict[str, Any]]], summaries: list[dict], compared: dict) -> None:
    """metrics.csv and metrics.json, of one or two inputs."""
    records = [{'input': source, **metrics_record(of_input, summary)} for source, of_input, summary
               in zip(config.input, rows, summaries, strict=True)]
    content = {'labels': config.labels, **records[0], 'left_out': left_out}
    if compared:
        interval = {short: [compared['95 % from'][short], compared['95 % to'][short]]
                    for short in compared['difference']}
        content |= {'second': records[1], 'difference': {
            'mean': compared['difference'], 'interval': interval, 'pairs': compared['pairs'],
            'first': compared['mean of the first'], 'second': compared['mean of the second']}}
    shorts = [short for short in METRIC_INFO if any(short in summary['mean']
                                                    for summary in summaries)]
    in_table = [{'input': source, **row} for source, of_input
                in zip(config.input, rows, strict=True) for row in of_input]
    write_metrics(folder, content, in_table, ['input', 'name', *shorts])


def write_report(folder: Path, config: Config, pairs: list[dict[str, tuple[Path, Path]]],
                 rows: list[list[dict[str, Any]]], compared: dict) -> None:
    """report.html: metrics and images of the first input, and how the second one differs. Of more
    than MAX_IN_REPORT masks it shows those of lowest JA."""
    facts = {'masks': config.input[0], 'labels': config.labels}
    if compared:
        facts['second masks'] = config.input[1]
        for short in compared['difference']:
            first, second, mean, low, high, count = (rounded(of_metric[short])
                                                     for of_metric in compared.values())
            facts[f'{short}, difference'] = (
                f'{mean} (95 % interval {low} to {high}), second minus first: {second} and {first} '
                f'over {count} pairs')
    shown = sorted(rows[0], key=lambda row: row['JA'])[:MAX_IN_REPORT]
    if len(shown) < len(rows[0]):
        facts['shown below'] = f'{len(shown)} of {len(rows[0])} masks, those of lowest JA'
    scored_again = {row['name'] for row in rows[1]} if compared else set()

    def entries() -> Iterator[report.Entry]:
        for row in shown:
            name, images = row['name'], {}
            for prefix, of_input in zip(('', 'second_'), pairs, strict=False):
                if prefix and name not in scored_again:
                    continue
                _, mask, label = compare(*of_input[name])
                images |= {f'{prefix}segmentation': mask.astype(np.uint8) * 255,
                           'label': label.astype(np.uint8) * 255,
                           f'{prefix}errors': visualize.error_map(mask, label)}
            metrics = {short: row[short] for short in METRIC_INFO if short in row}
            yield report.Entry(name, images, metrics)

    report.write(folder / 'report.html', f'{Path(config.input[0]).name}: evaluation', facts,
                 entries(), METRIC_INFO, summarize)
