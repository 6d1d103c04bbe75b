"""Does the label-free score rank checkpoints as true JA does?

    python benchmarks/label_free.py RUN_FOLDER … --locator FILE --data_root DATA --dataset NAME

Every checkpoint of the run folders (made with a large --keep) gets its label-free score on
pictures of trainA, as training would give it, and its JA on val. Printed are both, and Spearman's
rank correlation within each run and over all.
"""
import argparse
import sys
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import checkpoint as checkpoints  # noqa: E402
import dataset  # noqa: E402
import settings as presets  # noqa: E402
from masks import mask_network, soft_masks  # noqa: E402
from metrics import five_figures  # noqa: E402
from postprocess import segment  # noqa: E402
from selection import LabelFreeScore  # noqa: E402
from trainer import SCORED_PICTURES  # noqa: E402
from utils import pick_device, spread  # noqa: E402


def main():
    """Score every checkpoint both ways and print the correlation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('runs', nargs='+', type=Path)
    parser.add_argument('--locator', type=Path, required=True)
    parser.add_argument('--data_root', type=Path, required=True)
    parser.add_argument('--dataset', required=True)
    parser.add_argument('--device', default='auto')
    options = parser.parse_args()
    device = pick_device(options.device)
    folder = options.data_root / options.dataset
    flags = {'phase': 'test', 'dataset': options.dataset, 'device': options.device}

    locator = checkpoints.read(options.locator)
    own = presets.resolve(flags, locator.settings)
    score = LabelFreeScore(mask_network(locator, own, device), own.size, device)
    train = dataset.training_pictures(folder)
    score.learn_normal(spread(train['B'], SCORED_PICTURES))
    shown = spread(train['A'], SCORED_PICTURES)
    cases = dataset.validation_cases(folder)

    def mean_over(network, own, paths, value):
        """Mean of value(path, segmentation) by the preset rule."""
        def finish(soft):
            image = np.asarray(dataset.read_picture(soft.path))
            return value(soft.path, segment(soft.mask, own.default_rule, image,
                                            lesions=own.lesions))
        return float(np.mean(list(soft_masks(network, paths, own, device, finish=finish))))

    labels = {case.picture: case.label for case in cases}
    everything = []
    for run in options.runs:
        rows = []
        for path in checkpoints.numbered(run, options.dataset):
            source = checkpoints.read(path)
            own = presets.resolve(flags, source.settings)
            network = mask_network(source, own, device)
            rows.append((mean_over(network, own, shown, score),
                         mean_over(network, own, list(labels), lambda picture, segmentation:
                                   five_figures(segmentation,
                                                dataset.read_label(labels[picture]))['JA'])))
            print(f'{path}: score {rows[-1][0]:.1f}, val JA {rows[-1][1]:.1f}', flush=True)
        print(f'{run}: Spearman {spearmanr(*zip(*rows)).statistic:.2f} over {len(rows)}; JA of the '
              f'best by score {max(rows)[1]:.1f}, of the best by JA '
              f'{max(ja for _, ja in rows):.1f}, of the last {rows[-1][1]:.1f}')
        everything += rows
    print(f'all: Spearman {spearmanr(*zip(*everything)).statistic:.2f} over {len(everything)}')


if __name__ == '__main__':
    main()
