"""Segmentation from image labels on test: gray levels, CAM, the published method and ours.

    python benchmarks/accuracy.py OUTPUT --data_root DATA [--sets LGG ISIC] [--seeds 0 1 2]
                                  [--rows CAM …] [--student "--img_size 128 …"]

Trains what is missing in OUTPUT (a run that was stopped goes on), chooses checkpoints, thresholds
and post-processing on val, scores test, and prints the tables. OUTPUT/rows/ keeps the metrics of
every test image, and a row that is there is not computed again; OUTPUT/worst_<set>_<seed>.png
shows the ten worst test images of our last row, errors_<set>_<seed>.json its JA by size of the
lesion and how the soft mask is calibrated."""
import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from common import PROJECT, parser_of

# isort: split
import checkpoint as checkpoints
import dataset
from class_activation import (
    BATCH,
    PretrainedCAM,
    in_own_size,
    logit_maps,
    pooled_logits,
)
from config import Config, resolve
from gray_levels import soft_mask
from inference import metrics
from inference.postprocess import EXPONENTS, PSEUDO_LABEL_RULES, segment, to_bytes
from main import build_parser
from predict import Predictor
from presets import PROFILES
from reporting import visualize
from runtime.files import atomic_write
from runtime.threads import cpu_count, prefetch
from utils import area_under_curve

# ------------------------------------------------------------------------------------ the rows

class Training(NamedTuple):
    """One network to train; `teacher` is trained before, and its best checkpoint is the teacher."""

    folder: str
    stage: int
    flags: str = ''  # of main.py
    teacher: 'Training | None' = None


GRAY_LEVELS, PRETRAINED = 'gray levels', 'pretrained'  # what is no Training
CAM = Training('cam', 0, '--localizer_normal_weight 0 --blur_jitter False --contrast_jitter False '
                         '--rotate 15')
FIRST = Training('first', 1, '--recipe published')
FIRST_STAGE_2 = Training('first', 2, '--recipe published', FIRST)
SECOND = Training('second', 1, '--recipe published --generation second')
STAGE_0 = Training('ours', 0)
STAGE_1 = Training('ours', 1, teacher=STAGE_0)
STAGE_2 = Training('ours', 2, teacher=STAGE_0)
AFTER_STAGE_1 = Training('ours_with_stage_1', 2, teacher=STAGE_1)
# our student, taught by the labels of val
CEILING = Training('ceiling', 2, '--rounds 1 --pseudo_label_rule clean')

FINAL = 'ours, stage 2, best post-processing'
# name -> where its soft masks come from, and how they become segmentations: otsu; level, above the
# one chosen on val; crf, the same, then the CRF with its t chosen on val; refinement, see
# choose_refinement; val, the rule that --phase val chose
ROWS = {
    'gray levels': (GRAY_LEVELS, 'otsu'),
    'gray levels + refinement': (GRAY_LEVELS, 'refinement'),
    'CAM': (CAM, 'level'),
    'CAM + CRF': (CAM, 'crf'),
    'CAM + refinement': (CAM, 'refinement'),
    'CAM, pretrained encoder': (PRETRAINED, 'level'),
    'CAM, pretrained encoder + refinement': (PRETRAINED, 'refinement'),
    'published, first generation': (FIRST, 'otsu'),
    'published, first generation + refinement': (FIRST, 'refinement'),
    'published, stage 2': (FIRST_STAGE_2, 'val'),
    'published, second generation': (SECOND, 'otsu'),
    'ours, stage 0': (STAGE_0, 'otsu'),
    'ours, stage 0 + refinement': (STAGE_0, 'refinement'),
    'ours, stage 1': (STAGE_1, 'otsu'),
    'ours, stage 1, best post-processing': (STAGE_1, 'val'),
    'ours with stage 1': (AFTER_STAGE_1, 'otsu'),
    'ours with stage 1, best post-processing': (AFTER_STAGE_1, 'val'),
    'ours, stage 2': (STAGE_2, 'otsu'),
    FINAL: (STAGE_2, 'val'),
    'ceiling, labels of val': (CEILING, 'val')}
WHEN_ASKED = (FIRST_STAGE_2, STAGE_1, AFTER_STAGE_1)  # trained only for rows that --rows names
DEFAULT_ROWS = [name for name, (source, _) in ROWS.items() if source not in WHEN_ASKED]
CLASSIFIERS = (CAM, STAGE_0, PRETRAINED)  # which tell diseased from normal images
# as published, the first generation collapses on LGG to copying its input (JA 0.4)
INSTEAD = {('LGG', FIRST): '--adv_weight 10 --lr 1e-4'}
THRESHOLDS = np.arange(0.1, 1, 0.1)


# ------------------------------------------------------------------------------------ training

class Experiment:
    """One data set and seed, and the program run on them."""

    def __init__(self, options: argparse.Namespace, name: str, seed: int) -> None:
        self.name, self.seed, self.options = name, seed, options
        self.output = options.output / f'{name}_{seed}'
        self.data = options.data_root / name

    def config(self, flags: str = '') -> Config:
        """That of our stage 2 with these flags of main.py."""
        given = vars(build_parser().parse_args(flags.split()))
        return resolve({'dataset': self.name, 'stage': 2, 'seed': self.seed, **BATCH, **given,
                        'data_root': str(self.data.parent), 'device': self.options.device,
                        'profile': self.options.profile})

    def program(self, *arguments: Any) -> None:
        """Run main.py with these arguments."""
        command = [PROJECT / 'main.py', '--dataset', self.name, *map(str, arguments)]
        print('+', *command, flush=True)
        with subprocess.Popen([sys.executable, *command]) as process:
            try:
                code = process.wait()
            except BaseException:
                process.terminate()  # it saves what it has
                raise
        if code:
            raise subprocess.CalledProcessError(code, command)

    def train(self, training: Training) -> Path:
        """Train one network unless it is there, and let val choose; the chosen checkpoint."""
        folder, stage, _, teacher = training
        run = self.output / folder / self.name / f'model{stage}'
        if not (run / 'val.json').is_file():
            data_root = self.val_as_training_set() if training == CEILING else self.data.parent
            where = ['--data_root', data_root, '--result_dir', self.output / folder,
                     '--device', self.options.device, '--stage', stage]
            flags = self.flags(training)
            if teacher:
                flags += ['--teacher', self.train(teacher)]
            self.program('--phase', 'train', *where, *flags, '--seed', self.seed,
                         '--resume', 'True')
            self.program('--phase', 'val', *where, '--checkpoint', self.chosen(training, run))
        return self.chosen(training, run)

    def chosen(self, training: Training, run: Path) -> Path:
        """The checkpoint in the folder of a run that val chose. Val cannot choose for the ceiling,
        which learned from it: there it is the last one."""
        return checkpoints.numbered(run, self.name)[-1] if training == CEILING else run / 'best.pt'

    def flags(self, training: Training) -> list[str]:
        """What is special in a training, its size and length, and the profile."""
        options, flags = self.options, training.flags
        if 'published' in flags:
            if training.stage == 1:  # stage 2 takes its own from stage 1
                flags += f' {options.published} {INSTEAD.get((self.name, training), "")}'
            return flags.split()
        profile = f'--profile {options.profile}' if options.profile else ''
        size = (options.localizer, options.size, options.student)[training.stage]
        return f'{flags} {size} {profile}'.split()

    def val_as_training_set(self) -> Path:
        """A data root whose training images are those of val, with their labels as masks."""
        root = self.output / 'val_as_train'
        data = root / self.name
        data.mkdir(parents=True, exist_ok=True)
        links = {'trainA': self.data / 'val/images',
                 **{part: self.data / part for part in ('trainB', 'testA', 'test', 'val')}}
        for part, target in links.items():
            if not (data / part).exists():
                (data / part).symlink_to(target.resolve())
        for part in ('syn_trainA', 'syn_valA'):
            (data / part).mkdir(exist_ok=True)
            for case in dataset.validation_cases(self.data):
                label = dataset.read_label(case.label, case.image)
                cv2.imwrite(str(data / part / f'{case.name}.png'), to_bytes(label))
        return root


# --------------------------------------------------------------------------- choices and scores

class Cases(NamedTuple):
    """Labeled images of a split."""

    paths: list[Path]
    images: list[np.ndarray]  # H×W×3 uint8
    labels: list[np.ndarray]  # H×W bool


class Source(NamedTuple):
    """Where soft masks come from."""

    soft_masks: Callable[[Cases], list[np.ndarray]]  # H×W uint8 each
    image_logits: Callable[[list[Path]], list[float]] | None = None  # of disease
    predictor: Predictor | None = None


def read_cases(cases: list[dataset.Case]) -> Cases:
    return Cases([case.image for case in cases],
                 [np.asarray(dataset.read_image(case.image)) for case in cases],
                 [dataset.read_label(case.label, case.image) for case in cases])


def open_source(experiment: Experiment, source: Training | str) -> Source:
    """The source of a row's soft masks, trained if need be."""
    if source == GRAY_LEVELS:
        return Source(lambda cases: [to_bytes(soft_mask(image, experiment.name))
                                     for image in cases.images])
    if source == PRETRAINED:
        config = experiment.config(experiment.options.classifier)
        classifier = PretrainedCAM(experiment.output / 'pretrained' / 'classifier.pt', config)
        return Source(lambda cases: in_own_size(classifier.maps(cases.paths), cases.images),
                      classifier.logits)
    checkpoint = experiment.train(source)
    logits = partial(pooled_logits, checkpoint) if source in CLASSIFIERS else None
    if source == CAM:
        return Source(lambda cases: in_own_size(logit_maps(checkpoint, cases.paths), cases.images),
                      logits)
    predictor = Predictor(checkpoint, experiment.options.device)
    return Source(lambda cases: [to_bytes(mask) for mask in predictor.probabilities(cases.images)],
                  logits, predictor)


def mean_ja(segmentations: Iterable[np.ndarray], labels: list[np.ndarray]) -> float:
    return float(np.mean([metrics.segmentation_metrics(*pair)['JA']
                          for pair in zip(segmentations, labels, strict=True)]))


def above(masks: list[np.ndarray], level: float) -> list[np.ndarray]:
    return [mask > 255 * level for mask in masks]


def choose_level(masks: list[np.ndarray], val: Cases) -> float:
    """The threshold of soft masks that is best on val."""
    return max(THRESHOLDS, key=lambda level: mean_ja(above(masks, level), val.labels))


def by_crf(masks: list[np.ndarray], images: list[np.ndarray], level: float,
           exponent: float) -> list[np.ndarray]:
    """Segmentations of soft masks by the CRF, which looks at one half: `level` is moved there."""
    return [segment(to_bytes(mask / 255 * 0.5 / level), 'crf', image, exponent)
            for mask, image in zip(masks, images, strict=True)]


def refined(masks: list[np.ndarray], images: list[np.ndarray], level: float | None, rule: str,
            keep_components: str) -> list[np.ndarray]:
    """Segmentations of soft masks by a threshold (None: Otsu's) and one of PSEUDO_LABEL_RULES."""
    def refine(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
        mask = mask if level is None else to_bytes(mask > 255 * level)
        return segment(mask, rule, image, keep_components=keep_components)

    pairs = zip(masks, images, strict=True)
    return list(prefetch(lambda pair: refine(*pair), pairs, cpu_count()))


def choose_refinement(masks: list[np.ndarray], val: Cases,
                      keep_components: str) -> tuple[float | None, str]:
    """The threshold (None: Otsu's) and the rule of PSEUDO_LABEL_RULES that are best on val."""
    return max(product((None, *THRESHOLDS), PSEUDO_LABEL_RULES), key=lambda choice: mean_ja(
        refined(masks, val.images, *choice, keep_components), val.labels))


def to_segmentations(rule: str, source: Source, masks: list[np.ndarray], test: Cases,
                     experiment: Experiment) -> tuple[str, list[np.ndarray]]:
    """What was chosen on val, and the segmentations of test, whose soft masks are given, by a rule
    of ROWS."""
    if rule in ('otsu', 'val'):
        predictor = source.predictor
        exponent, keep = 1.0, experiment.config().keep_components
        if rule == 'val':
            rule, exponent = predictor.rule, predictor.exponent
            keep = predictor.config.keep_components
        return rule, [segment(mask, rule, image, exponent, keep)
                      for mask, image in zip(masks, test.images, strict=True)]
    val = read_cases(dataset.validation_cases(experiment.data))
    val_masks = source.soft_masks(val)
    if rule == 'refinement':
        keep = experiment.config().keep_components
        level, rule = choose_refinement(val_masks, val, keep)
        chosen = 'otsu' if level is None else f'above {level:.2f}'
        return f'{chosen}, {rule}', refined(masks, test.images, level, rule, keep)
    level = choose_level(val_masks, val)
    if rule == 'level':
        return f'above {level:.2f}', above(masks, level)
    exponent = max(EXPONENTS, key=lambda t: mean_ja(
        by_crf(val_masks, val.images, level, t), val.labels))
    return f'above {level:.2f}, t {exponent}', by_crf(masks, test.images, level, exponent)


def compute_row(experiment: Experiment, name: str) -> dict[str, Any]:
    """Train, choose on val, score test: {'chosen': …, 'cases': {image name: metrics}}, and of
    classifiers 'auc', testA against testB, percent."""
    source_name, rule = ROWS[name]
    source = open_source(experiment, source_name)
    cases = [case for case in dataset.find_cases(experiment.data, 'test') if case.label]
    test = read_cases(cases)
    masks = source.soft_masks(test)
    chosen, segmentations = to_segmentations(rule, source, masks, test, experiment)
    scores = {case.name: metrics.segmentation_metrics(segmentation, label) for case, segmentation,
              label in zip(cases, segmentations, test.labels, strict=True)}
    if name == FINAL:
        analyze_errors(experiment, test, masks, segmentations, scores)
    result = {'chosen': chosen, 'cases': scores}
    if source.image_logits and rule in ('otsu', 'level'):
        logits = [source.image_logits(dataset.list_images(experiment.data / f'test{domain}'))
                  for domain in 'AB']
        result['auc'] = 100 * area_under_curve(*map(np.array, logits))
    return result


def analyze_errors(experiment: Experiment, test: Cases, soft: list[np.ndarray],
                   segmentations: list[np.ndarray], scores: dict[str, dict[str, float]]) -> None:
    """JA by size of the lesion, calibration of the soft mask, and the ten worst images."""
    suffix, output = f'{experiment.name}_{experiment.seed}', experiment.options.output
    sizes = np.array([label.mean() for label in test.labels])
    ja = np.array([values['JA'] for values in scores.values()])
    thirds = [{'share of image': [float(100 * sizes[part].min()), float(100 * sizes[part].max())],
               'JA': float(ja[part].mean())}
              for part in np.array_split(np.argsort(sizes), 3) if part.size]
    levels, truth = (np.concatenate([array.ravel() for array in arrays])
                     for arrays in (soft, test.labels))
    bins = np.minimum(levels / 255 * 10, 9).astype(int)
    calibration = [{'mask': float(levels[bins == number].mean() / 255),
                    'lesion': float(truth[bins == number].mean()),
                    'pixels': int((bins == number).sum())}
                   for number in range(10) if (bins == number).any()]
    worst = np.argsort(ja)[:10]
    names = list(scores)
    grid = visualize.image_grid({f'JA {ja[index]:.1f}\n{names[index]}': {
        'image': test.images[index], 'mask': visualize.from_mask(soft[index] / 255),
        'overlay': visualize.overlay(test.images[index], segmentations[index],
                                     test.labels[index])} for index in worst})
    cv2.imwrite(str(output / f'worst_{suffix}.png'), grid[..., ::-1])
    (output / f'errors_{suffix}.json').write_text(json.dumps(
        {'thirds by size': thirds, 'calibration': calibration,
         'worst': [(names[index], float(ja[index])) for index in worst]}, indent=1) + '\n')


# -------------------------------------------------------------------------------------- tables

def mean_and_deviation(values: list[float]) -> str:
    """Over seeds; one value alone has no deviation."""
    deviation = f' ± {np.std(values, ddof=1):.1f}' if len(values) > 1 else ''
    return f'{np.mean(values):.1f}{deviation}'


def print_tables(name: str, results: dict[str, list[dict[str, Any]]]) -> None:
    """The metrics of each row, mean ± standard deviation over its runs, one for each seed; AUC of
    classifiers; gains of our last row over every other, with 95 % intervals."""
    print(f'\n| {name}, test | ' + ' | '.join(metrics.METRICS) + ' | chosen on val |')
    print('|---' * (len(metrics.METRICS) + 2) + '|')
    for row, runs in results.items():
        means = [metrics.mean_metrics(list(run['cases'].values())) for run in runs]
        cells = [mean_and_deviation([mean[metric] for mean in means])
                 for metric in metrics.METRICS]
        print(f'| {row} ({len(runs)}) | ' + ' | '.join(cells)
              + f' | {"; ".join(run["chosen"] for run in runs)} |')
    print('\nAUC of image labels, testA against testB, percent:')
    for row, runs in results.items():
        if 'auc' in runs[0]:
            print(f'- {row}: {mean_and_deviation([run["auc"] for run in runs])}')
    if FINAL not in results:
        return
    print(f'\nJA, {FINAL}, minus that of each row (paired bootstrap over images, of their means '
          'over seeds):')
    ja = {row: np.mean([[case['JA'] for case in run['cases'].values()] for run in runs], 0)
          for row, runs in results.items()}
    for row, values in ja.items():
        if row != FINAL:
            low, high = metrics.paired_bootstrap(values, ja[FINAL])
            print(f'- {row}: {(ja[FINAL] - values).mean():+.1f} [{low:.1f}, {high:.1f}]')


def stored_row(options: argparse.Namespace, name: str, seed: int, row: str) -> dict[str, Any]:
    """A row's result, read from its file, or computed and written there; a rule without learning
    has one file for all seeds."""
    part = '' if ROWS[row][0] == GRAY_LEVELS else f'_{seed}'
    slug = re.sub(r'\W+', '_', row)
    stored = options.output / 'rows' / f'{name}{part}_{slug}.json'
    if not stored.is_file():
        result = compute_row(Experiment(options, name, seed), row)
        with atomic_write(stored) as temporary:
            temporary.write_text(json.dumps({'row': row, **result}, indent=1) + '\n')
    return json.loads(stored.read_text())


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The flags of this script, or these; `output` is the folder of the chosen profile."""
    parser = parser_of(__doc__)
    parser.add_argument('output', type=Path)
    parser.add_argument('--data_root', type=Path, required=True)
    parser.add_argument('--sets', nargs='+', default=['LGG', 'ISIC', 'BUSI'])
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument('--rows', nargs='+', default=DEFAULT_ROWS, choices=ROWS, metavar='ROW',
                        help='default: all but those of published stage 2 and our stage 1; '
                        f'choices: {"; ".join(ROWS)}')
    parser.add_argument('--profile', default='', choices=('', *PROFILES),
                        help='of ours and of the refinement of all, instead of the one that '
                        'belongs to the data set; results go to OUTPUT/PROFILE')
    parser.add_argument('--localizer', default='', metavar='FLAGS',
                        help='flags of main.py for our stage 0 and for CAM')
    parser.add_argument('--size', default='--ch 16 --img_size 128 --iteration 300',
                        metavar='FLAGS', help='for our stage 1')
    parser.add_argument('--student', default='', metavar='FLAGS',
                        help='for our stage 2 and the ceiling')
    parser.add_argument('--classifier', default='--img_size 192 --iteration 300', metavar='FLAGS',
                        help='for CAM with a pretrained encoder')
    parser.add_argument('--published', default='--ch 16 --img_size 128 --iteration 600',
                        metavar='FLAGS', help='for the published method; takes about as long as '
                        'ours')
    parser.add_argument('--device', default='auto')
    options = parser.parse_args(arguments)
    options.output /= options.profile
    return options


def main() -> None:
    """Compute what is missing, and print the tables."""
    options = parse_options()
    (options.output / 'rows').mkdir(parents=True, exist_ok=True)
    for name in options.sets:
        results = {row: [] for row in options.rows}
        for seed in options.seeds:
            for row in options.rows:
                if ROWS[row][0] != GRAY_LEVELS or not results[row]:
                    results[row].append(stored_row(options, name, seed, row))
        print_tables(name, results)


if __name__ == '__main__':
    main()
