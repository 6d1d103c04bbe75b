"""Segmentation from image labels on test: gray levels, CAM, the published method and ours.

    python benchmarks/accuracy.py OUTPUT --data_root DATA [--sets LGG ISIC] [--seeds 0 1 2]
                                  [--rows CAM …] [--size "--ch 16 --img_size 128 …"]

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
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from common import PROJECT, parser_of

# isort: split
import checkpoint as checkpoints
import dataset
from config import resolve
from inference import metrics
from inference.postprocess import EXPONENTS, segment, to_bytes
from inference.refinement import clean, erode
from inference.soft_masks import resize_map
from predict import Predictor
from reporting import visualize
from utils import rescale_to_unit

# a plain classifier
CAM = [['--stage', '0', '--localizer_normal_weight', '0', '--blur_jitter', 'False',
        '--contrast_jitter', 'False', '--rotate', '15']]
PUBLISHED = [['--stage', '1', '--recipe', 'published'], ['--stage', '2', '--recipe', 'published']]
OURS = [['--stage', '0'], ['--stage', '1'], ['--stage', '2']]
FINAL = 'ours, stage 2, best post-processing'
# name -> folder (rows of one share their networks), flags of each stage in order (the last network
# is scored), rule of post-processing (val: the one that val chose)
ROWS = {
    'gray levels, no training': ('', [], 'otsu'),
    'gray levels, no training, refined': ('', [], 'refine'),
    'CAM': ('cam', CAM, 'threshold'),
    'CAM + CRF': ('cam', CAM, 'crf'),
    'published, first generation': ('first', PUBLISHED[:1], 'otsu'),
    'published, stage 2': ('first', PUBLISHED, 'val'),
    'published, second generation': ('second', [[*PUBLISHED[0], '--generation', 'second']], 'otsu'),
    'ours, stage 0': ('ours', OURS[:1], 'otsu'),
    'ours, stage 1': ('ours', OURS[:2], 'otsu'),
    'ours, stage 1, best post-processing': ('ours', OURS[:2], 'val'),
    'ours, stage 2': ('ours', OURS, 'otsu'),
    FINAL: ('ours', OURS, 'val'),
    # a U-Net that learns from the labels of val
    'ceiling': ('ceiling', [['--stage', '2', '--encoder', 'none',
                            '--target_update_freq', '0', '--refine', 'False']], 'val')}
# as published, the first generation collapses on LGG to copying its input (JA 0.4)
INSTEAD = {('LGG', 'first'): ['--adv_weight', '10', '--lr', '1e-4']}
THRESHOLDS = np.arange(0.05, 1, 0.05)
RIM = 20  # px of a 256 px image inside the outline of the head that are no lesion; chosen on val


def dark_in_the_middle(image: np.ndarray) -> np.ndarray:
    """Soft mask H×W in [0, 1]: darkness (CIELAB lightness stretched from its 1st to its 99th
    percentile) times a centered Gaussian, σ a quarter of the side."""
    lightness = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)[..., 0].astype(float)
    low, high = np.percentile(lightness, (1, 99))
    rows, columns = (np.exp(-8 * np.linspace(-0.5, 0.5, side) ** 2) for side in lightness.shape)
    return np.clip((high - lightness) / (high - low + 1e-6), 0, 1) * np.outer(rows, columns)


def bright_in_the_head(image: np.ndarray) -> np.ndarray:
    """Soft mask H×W: how far a blurred FLAIR slice is above its median, inside the head."""
    blurred = cv2.GaussianBlur(image[..., 0], (0, 0), 3)
    head = clean(blurred > 20, 'large')
    inside = erode(RIM, np.pad(head, 1))[1:-1, 1:-1]
    if inside.sum() < 100:
        return np.zeros(blurred.shape)
    levels = blurred[inside].astype(float)
    return (blurred - np.median(levels)) / (4 * levels.std() + 1e-6) * inside


GRAY_LEVELS = {'LGG': bright_in_the_head, 'BraTS': bright_in_the_head}  # others: dark


class Experiment:
    """One data set and seed, and the program run on them."""

    def __init__(self, options: argparse.Namespace, name: str, seed: int) -> None:
        self.name, self.seed, self.options = name, seed, options
        self.output = options.output / f'{name}_{seed}'
        self.data = options.data_root / name

    def program(self, *arguments: Any) -> None:
        """Run main.py with these arguments."""
        command = [PROJECT / 'main.py', '--dataset', self.name, *map(str, arguments)]
        print('+', *command, flush=True)
        subprocess.run([sys.executable, *command], check=True)

    def train(self, folder: str, flags: list[str]) -> Path:
        """Train one network unless it is there, and let val choose; the chosen checkpoint."""
        stage = int(flags[1])
        run = self.output / folder / self.name / f'model{stage}'
        data_root = self.val_as_training_set() if folder == 'ceiling' else self.data.parent
        where = ['--data_root', data_root, '--result_dir', self.output / folder,
                 '--device', self.options.device]
        if not (run / 'val.json').is_file():
            self.program('--phase', 'train', *where, *flags, *self.extra_flags(folder, stage),
                         '--seed', self.seed, '--resume', 'True')
            # val cannot choose for the ceiling, which learned from it: the last one
            chosen = (checkpoints.numbered(run, self.name)[-1] if folder == 'ceiling'
                      else run / 'best.pt')
            self.program('--phase', 'val', *where, '--stage', stage, '--checkpoint', chosen)
        return run / 'best.pt'

    def extra_flags(self, folder: str, stage: int) -> list[str]:
        """Size and length of a training; later stages take theirs from stage 1 or a preset."""
        if folder == 'ceiling':  # which has no stage 1
            size = self.options.size.split()
            return size[size.index('--img_size'):][:2]
        if stage != 1:
            return []
        size = self.options.size if folder == 'ours' else self.options.published
        return size.split() + INSTEAD.get((self.name, folder), [])

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
                label = dataset.read_label(case.label)
                cv2.imwrite(str(data / part / f'{case.name}.png'), to_bytes(label))
        return root


class Cases(NamedTuple):
    """Labeled images of a split."""

    paths: list[Path]
    images: list[np.ndarray]  # H×W×3 uint8
    labels: list[np.ndarray]  # H×W bool


def read_cases(cases: list[dataset.Case]) -> Cases:
    return Cases([case.image for case in cases],
                 [np.asarray(dataset.read_image(case.image)) for case in cases],
                 [dataset.read_label(case.label) for case in cases])


def mean_ja(segmentations: list[np.ndarray], labels: list[np.ndarray]) -> float:
    return float(np.mean([metrics.segmentation_metrics(*pair)['JA']
                          for pair in zip(segmentations, labels, strict=True)]))


def activation_maps(checkpoint: Path, cases: Cases) -> list[np.ndarray]:
    """Logits of a plain classifier, stretched from their minimum to their maximum, H×W uint8."""
    predictor = Predictor(checkpoint, 'cpu')
    maps = []
    for batch in dataset.image_batches(cases.paths, predictor.config, 1):
        with torch.inference_mode():
            logits = predictor.network(batch['image'])[0, 0].numpy()
        size = cases.labels[len(maps)].shape[::-1]
        maps.append(to_bytes(resize_map(rescale_to_unit(logits), size)))
    return maps


def segment_cam(checkpoint: Path, rule: str, val: Cases,
                test: Cases) -> tuple[str, list[np.ndarray]]:
    """Threshold and, with the rule crf, its t chosen on val; segmentations of test."""
    val_maps, maps = activation_maps(checkpoint, val), activation_maps(checkpoint, test)
    level = max(THRESHOLDS, key=lambda t: mean_ja([m > 255 * t for m in val_maps], val.labels))
    chosen = f'above {level:.2f}'
    if rule == 'threshold':
        return chosen, [soft > 255 * level for soft in maps]
    # the CRF looks at one half: move the level there
    val_maps, maps = ([to_bytes(soft / 255 * 0.5 / level) for soft in split]
                      for split in (val_maps, maps))

    def by_crf(masks: list[np.ndarray], images: list[np.ndarray], t: int) -> list[np.ndarray]:
        return [segment(soft, 'crf', image, t)
                for soft, image in zip(masks, images, strict=True)]

    exponent = max(EXPONENTS, key=lambda t: mean_ja(by_crf(val_maps, val.images, t), val.labels))
    return f'{chosen}, t {exponent}', by_crf(maps, test.images, exponent)


def compute_row(experiment: Experiment, name: str) -> dict[str, Any]:
    """Train, choose on val, score test: {'chosen': …, 'cases': {image name: metrics}}."""
    folder, trainings, rule = ROWS[name]
    for flags in trainings:
        checkpoint = experiment.train(folder, flags)
    cases = [case for case in dataset.find_cases(experiment.data, 'test') if case.label]
    test = read_cases(cases)
    if not folder:
        refinement = resolve({'dataset': experiment.name, 'stage': 2}).refinement
        gray_levels = GRAY_LEVELS.get(experiment.name, dark_in_the_middle)
        chosen, segmentations = rule, [segment(to_bytes(gray_levels(image)), rule, image,
                                               refinement=refinement) for image in test.images]
    elif folder == 'cam':
        val = read_cases(dataset.validation_cases(experiment.data))
        chosen, segmentations = segment_cam(checkpoint, rule, val, test)
    else:
        predictor = Predictor(checkpoint, experiment.options.device)
        soft = [to_bytes(mask) for mask in predictor.probabilities(test.images)]
        chosen = predictor.rule if rule == 'val' else rule
        segmentations = [segment(mask, chosen, image, predictor.exponent,
                                 predictor.config.refinement)
                         for mask, image in zip(soft, test.images, strict=True)]
    scores = {case.name: metrics.segmentation_metrics(segmentation, label) for case, segmentation,
              label in zip(cases, segmentations, test.labels, strict=True)}
    if name == FINAL:
        analyze_errors(experiment, test, soft, segmentations, scores)
    return {'chosen': chosen, 'cases': scores}


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
    grid = visualize.image_grid({
        'image': [test.images[index] for index in worst],
        'mask': [visualize.from_mask(soft[index] / 255) for index in worst],
        'outlines': [visualize.overlay(test.images[index], segmentations[index],
                                       test.labels[index]) for index in worst]})
    cv2.imwrite(str(output / f'worst_{suffix}.png'), grid[..., ::-1])
    names = list(scores)
    (output / f'errors_{suffix}.json').write_text(json.dumps(
        {'thirds by size': thirds, 'calibration': calibration,
         'worst': [(names[index], float(ja[index])) for index in worst]}, indent=1) + '\n')


def print_tables(name: str, results: dict[tuple[int, str], dict], rows: list[str],
                 seeds: list[int]) -> None:
    """The metrics by row, mean ± standard deviation over seeds; gains with 95 % intervals."""
    print(f'\n| {name}, test | ' + ' | '.join(metrics.METRICS) + ' | chosen on val |')
    print('|---' * (len(metrics.METRICS) + 2) + '|')
    ja = {}
    for row in rows:
        runs = [results[seed, row] for seed in seeds if (seed, row) in results]
        if not runs:
            continue
        ja[row] = np.mean([[case['JA'] for case in run['cases'].values()] for run in runs], 0)
        means = [metrics.mean_metrics(list(run['cases'].values())) for run in runs]
        cells = [f'{np.mean([mean[metric] for mean in means]):.1f}'
                 + (f' ± {np.std([mean[metric] for mean in means], ddof=1):.1f}'
                    if len(means) > 1 else '') for metric in metrics.METRICS]
        print(f'| {row} ({len(runs)}) | ' + ' | '.join(cells)
              + f' | {", ".join(run["chosen"] for run in runs)} |')
    for better, other in ((FINAL, 'published, first generation'), (FINAL, 'CAM + CRF'),
                          (FINAL, 'ours, stage 1'),
                          ('published, stage 2', 'published, first generation')):
        if better in ja and other in ja:
            low, high = metrics.paired_bootstrap(ja[other], ja[better])
            print(f'{better} − {other}: {(ja[better] - ja[other]).mean():+.1f} '
                  f'[{low:.1f}, {high:.1f}]')


def main() -> None:
    """Compute what is missing, and print the tables."""
    parser = parser_of(__doc__)
    parser.add_argument('output', type=Path)
    parser.add_argument('--data_root', type=Path, required=True)
    parser.add_argument('--sets', nargs='+', default=['LGG', 'ISIC'])
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--rows', nargs='+', default=list(ROWS), choices=ROWS)
    parser.add_argument('--size', default='--ch 16 --img_size 128 --iteration 300',
                        help='flags of main.py for our stage 1')
    parser.add_argument('--published', default='--ch 16 --img_size 128 --iteration 600',
                        help='for the published method; takes about as long as our three stages')
    parser.add_argument('--device', default='auto')
    options = parser.parse_args()
    (options.output / 'rows').mkdir(parents=True, exist_ok=True)
    for name in options.sets:
        results = {}
        for seed in options.seeds:
            for row in options.rows:
                slug = re.sub(r'\W+', '_', row)
                stored = options.output / 'rows' / f'{name}_{seed}_{slug}.json'
                if not stored.is_file():
                    result = compute_row(Experiment(options, name, seed), row)
                    stored.write_text(json.dumps({'row': row, **result}, indent=1) + '\n')
                results[seed, row] = json.loads(stored.read_text())
        print_tables(name, results, options.rows, options.seeds)


if __name__ == '__main__':
    main()
