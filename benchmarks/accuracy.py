"""Masks from image labels: the class-activation family, the published method and ours, on test.

    python benchmarks/accuracy.py OUTPUT --data_root DATA [--sets LGG ISIC] [--seeds 0 1 2]
                                  [--rows CAM …] [--size "--ch 16 --img_size 128 …"]

Trains what is missing in OUTPUT (a run that was stopped goes on), chooses checkpoints, thresholds
and post-processing on val, scores test, and prints the tables. OUTPUT/rows/ holds every figure of
every test picture, and what was written there is not made again; OUTPUT/worst_<set>.png shows the
ten worst test pictures of the last row.
"""
import argparse
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import torch

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))
import checkpoint as checkpoints  # noqa: E402
import dataset  # noqa: E402
import pictures  # noqa: E402
import settings as presets  # noqa: E402
from masks import mask_network, resize_map, soft_masks  # noqa: E402
from metrics import FIGURES, five_figures, mean_figures, paired_bootstrap  # noqa: E402
from postprocess import EXPONENTS, segment, to_bytes  # noqa: E402
from selection import stored_choice  # noqa: E402
from utils import pick_device, to_unit_range  # noqa: E402

# name: (folder, flags of training); rows of one folder share a network
PLAIN = ['--stage', '0', '--normal_weight', '0', '--blur', 'False', '--fade', 'False', '--turn', '15']
PUBLISHED = ['--stage', '1', '--recipe', 'published']
# of the first generation on LGG: as published it collapses to copying (JA 0.4)
INSTEAD = {('LGG', 'first'): ['--adv_weight', '10', '--lr', '1e-4']}
ROWS = {
    'CAM': ('cam', PLAIN),
    'CAM + CRF': ('cam', PLAIN),
    'published, first generation': ('first', PUBLISHED),
    'published, second generation': ('second', [*PUBLISHED, '--generation', 'second']),
    'ours, stage 0': ('ours', ['--stage', '0']),
    'ours, stage 1': ('ours', ['--stage', '1']),
    'ours, stage 1, best post-processing': ('ours', ['--stage', '1']),
    'ours, stage 2': ('ours', ['--stage', '2']),
    'ours, stage 2, best post-processing': ('ours', ['--stage', '2']),
    'ceiling: taught by val labels': ('ceiling', ['--stage', '2']),
}
BY_OTSU = ('published, first generation', 'published, second generation', 'ours, stage 0',
           'ours, stage 1', 'ours, stage 2')
THRESHOLDS = np.arange(0.05, 1, 0.05)


class Place:
    """One data set, seed and output folder, and the program run on them."""

    def __init__(self, options, name, seed):
        self.name, self.seed, self.options = name, seed, options
        self.output = options.output / f'{name}_{seed}'
        self.data = Path(options.data_root) / name

    def program(self, *arguments):
        command = [sys.executable, str(PROJECT / 'main.py'), '--dataset', self.name,
                   *map(str, arguments)]
        print('+', *command[1:], flush=True)
        subprocess.run(command, check=True)

    def train(self, folder, flags):
        """Train one network, unless it is there, and let val choose; the chosen checkpoint."""
        stage = int(flags[1])
        root = self.output / folder
        run = root / self.name / f'model{stage}'
        places = ['--data_root', self.data.parent, '--result_dir', root, '--device',
                  self.options.device]
        if folder == 'ceiling':
            places[1] = self.val_as_training_set()
        if not (run / 'val.json').is_file():
            size = []
            if stage == 1:
                size = (self.options.size if folder == 'ours' else self.options.published).split()
            size += INSTEAD.get((self.name, folder), [])
            extra = []
            if folder == 'ceiling':  # which has no stage 1 to take the size over from
                own = self.options.size.split()
                extra = ['--renew_freq', '0', '--fit', 'False', *own[own.index('--img_size'):][:2]]
            self.program('--phase', 'train', *places, *flags, *size, *extra, '--seed', self.seed,
                         '--resume', 'True')
            chosen = run / 'best.pt' if folder != 'ceiling' else checkpoints.numbered(
                run, self.name)[-1]
            self.program('--phase', 'val', *places, '--stage', stage, '--checkpoint', chosen)
        return run / 'best.pt'

    def val_as_training_set(self):
        """A data root whose training pictures are those of val, with their labels as masks. The
        last checkpoint is taken, since val cannot choose any more."""
        root = self.output / 'val_as_train'
        data = root / self.name
        data.mkdir(parents=True, exist_ok=True)
        links = {'trainA': self.data / 'val/images', 'syn_valA': None, 'syn_trainA': None,
                 **{part: self.data / part for part in ('trainB', 'testA', 'test', 'val')}}
        for part, target in links.items():
            if target and not (data / part).exists():
                (data / part).symlink_to(target.resolve())
        for part in ('syn_trainA', 'syn_valA'):
            (data / part).mkdir(exist_ok=True)
            for case in dataset.validation_cases(self.data):
                label = dataset.read_label(case.label)
                cv2.imwrite(str(data / part / f'{case.name}.png'), to_bytes(label))
        return root

    def soft(self, path, cases):
        """The settings of a checkpoint, and its soft masks of the cases."""
        source = checkpoints.read(path)
        own = presets.resolve({'phase': 'test', 'data_root': str(self.data.parent),
                               'dataset': self.name, 'device': self.options.device},
                              source.settings)
        network = mask_network(source, own, pick_device(own.device))
        made = soft_masks(network, [case.picture for case in cases], own,
                          pick_device(own.device), finish=lambda soft: soft.mask)
        return source, own, list(made)

    def activations(self, path, cases):
        """A plain classifier's activations, stretched from their minimum to their maximum, uint8."""
        source = checkpoints.read(path)
        own = presets.resolve({'phase': 'test', 'dataset': self.name}, source.settings)
        network = mask_network(source, own, torch.device('cpu'))
        maps = []
        for batch in dataset.picture_batches([case.picture for case in cases], own, 1):
            with torch.inference_mode():
                evidence = to_unit_range(network(batch['image'])[0, 0].numpy())
            label = dataset.read_label(cases[len(maps)].label)
            maps.append(to_bytes(resize_map(evidence, label.shape[::-1])))
        return maps


def read_cases(cases):
    return ([np.asarray(dataset.read_picture(case.picture)) for case in cases],
            [dataset.read_label(case.label) for case in cases])


def mean_ja(segmentations, labels):
    return np.mean([five_figures(*pair)['JA'] for pair in zip(segmentations, labels)])


def make_row(place, row):
    """Train, choose on val, score test: {'chosen': …, 'cases': {name: figures}}."""
    folder, flags = ROWS[row]
    if row.startswith('ours') and int(flags[1]) > 0:  # the stages before it, one after the other
        for stage in range(int(flags[1])):
            place.train('ours', ['--stage', str(stage)])
    path = place.train(folder, flags)
    cases = [case for case in dataset.find_cases(place.data, 'test') if case.label]
    images, labels = read_cases(cases)
    if folder == 'cam':
        val = dataset.validation_cases(place.data)
        val_images, val_labels = read_cases(val)
        val_maps, maps = place.activations(path, val), place.activations(path, cases)
        level = max(THRESHOLDS, key=lambda t: mean_ja([m > 255 * t for m in val_maps], val_labels))
        chosen, soft = f'above {level:.2f}', maps
        made = [one > 255 * level for one in maps]
        if row == 'CAM + CRF':
            halved = [[to_bytes(one / 255 * 0.5 / level) for one in some]
                      for some in (val_maps, maps)]
            exponent = max(EXPONENTS, key=lambda t: mean_ja(
                [segment(*pair, t) for pair in zip(halved[0], ['crf'] * len(val), val_images)],
                val_labels))
            chosen += f', t {exponent}'
            made = [segment(one, 'crf', image, exponent) for one, image in zip(halved[1], images)]
    else:
        source, own, soft = place.soft(path, cases)
        choice = {'rule': 'otsu'} if row in BY_OTSU else stored_choice(source)
        chosen = choice['rule']
        made = [segment(mask, choice['rule'], image, choice.get('crf_t', 1), own.lesions)
                for mask, image in zip(soft, images)]
    figures = {case.name: five_figures(one, label)
               for case, one, label in zip(cases, made, labels)}
    if row == list(ROWS)[8]:
        robustness(place, cases, images, labels, soft, made, figures)
    return {'chosen': chosen, 'cases': figures}


def robustness(place, cases, images, labels, soft, made, figures):
    """Figures by size of lesion, calibration of the soft mask, and the ten worst pictures."""
    sizes = np.array([label.mean() for label in labels])
    ja = np.array([figures[case.name]['JA'] for case in cases])
    order = np.argsort(sizes)
    terciles = [{'share of picture': [float(100 * sizes[part].min()), float(100 * sizes[part].max())],
                 'JA': float(ja[part].mean())} for part in np.array_split(order, 3)]
    levels, truth = (np.concatenate([np.ravel(one) for one in some]) for some in (soft, labels))
    bins = np.minimum(levels / 255 * 10, 9).astype(int)
    calibration = [{'mask': float(levels[bins == one].mean() / 255),
                    'lesion': float(truth[bins == one].mean()), 'pixels': int((bins == one).sum())}
                   for one in range(10) if (bins == one).any()]
    worst = np.argsort(ja)[:10]
    rows = {}
    for index in worst:
        shown = pictures.outline(pictures.outline(images[index], made[index],
                                                  pictures.SEGMENTATION_COLOUR), labels[index],
                                 pictures.LABEL_COLOUR)
        rows.setdefault('image', []).append(images[index])
        rows.setdefault('mask', []).append(pictures.from_mask(soft[index] / 255))
        rows.setdefault('outlines', []).append(shown)
    cv2.imwrite(str(place.options.output / f'worst_{place.name}_{place.seed}.png'),
                pictures.sheet(rows)[..., ::-1])
    report = {'terciles': terciles, 'calibration': calibration,
              'worst': [(cases[index].name, float(ja[index])) for index in worst]}
    (place.options.output / f'robustness_{place.name}_{place.seed}.json').write_text(
        json.dumps(report, indent=1) + '\n')


def print_tables(name, results, rows, seeds):
    """The five figures by row, mean ± standard deviation over seeds; gains with intervals."""
    print(f'\n| {name}, test | ' + ' | '.join(FIGURES) + ' | chosen on val |')
    print('|---' * (len(FIGURES) + 2) + '|')
    ja = {}
    for row in rows:
        there = [results[seed, row] for seed in seeds if (seed, row) in results]
        if not there:
            continue
        ja[row] = np.mean([[case['JA'] for case in one['cases'].values()] for one in there], 0)
        means = [mean_figures(list(one['cases'].values())) for one in there]
        cells = [f'{np.mean([mean[figure] for mean in means]):.1f}'
                 + (f' ± {np.std([mean[figure] for mean in means], ddof=1):.1f}'
                    if len(means) > 1 else '') for figure in FIGURES]
        print(f'| {row} ({len(there)}) | ' + ' | '.join(cells)
              + f' | {", ".join(one["chosen"] for one in there)} |')
    best = list(ROWS)[8]
    for other in ('published, first generation', 'CAM + CRF', 'ours, stage 1'):
        if best in ja and other in ja:
            low, high = paired_bootstrap(ja[other], ja[best])
            print(f'{best} − {other}: {(ja[best] - ja[other]).mean():+.1f} [{low:.1f}, {high:.1f}]')


def main():
    """Make what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('output', type=Path)
    parser.add_argument('--data_root', type=Path, required=True)
    parser.add_argument('--sets', nargs='+', default=['LGG', 'ISIC'])
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--rows', nargs='+', default=list(ROWS), choices=ROWS)
    parser.add_argument('--size', default='--ch 16 --img_size 128 --iteration 300',
                        help='flags of main.py for our stage 1')
    parser.add_argument('--published', default='--ch 16 --img_size 128 --iteration 600',
                        help='those for the published method, which then takes about as long as '
                             'our three stages')
    parser.add_argument('--device', default='auto')
    options = parser.parse_args()
    (options.output / 'rows').mkdir(parents=True, exist_ok=True)
    for name in options.sets:
        results = {}
        for seed in options.seeds:
            for number, row in enumerate(ROWS):
                if row not in options.rows:
                    continue
                stored = options.output / 'rows' / f'{name}_{seed}_{number}.json'
                if not stored.is_file():
                    made = make_row(Place(options, name, seed), row)
                    stored.write_text(json.dumps({'row': row, **made}, indent=1) + '\n')
                results[seed, row] = json.loads(stored.read_text())
        print_tables(name, results, options.rows, options.seeds)


if __name__ == '__main__':
    main()
