"""Does the label-free score rank checkpoints as JA does?

    python benchmarks/label_free.py RUN_FOLDER … --localizer FILE --data_root DATA --dataset NAME

Every checkpoint of the run folders (trained with a large --keep_checkpoints) gets its label-free
score on images of trainA, as in training, and its JA on val. Prints both, and Spearman's rank
correlation within each run and over all."""
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from common import parser_of

# isort: split
import checkpoint as checkpoints
import dataset
from config import Config, resolve
from inference.metrics import segmentation_metrics
from inference.model_selection import LabelFreeScore
from inference.postprocess import segment
from inference.soft_masks import SoftMask, mask_network, soft_masks
from stages.validation import SCORED_IMAGES
from utils import evenly_spaced, pick_device


def mean_over(network: torch.nn.Module, config: Config, device: torch.device, paths: list[Path],
              value: Callable[[Path, np.ndarray], float]) -> float:
    """Mean of value(path, segmentation) over images, by the default post-processing."""
    def finish(soft: SoftMask) -> float:
        return value(soft.path, segment(soft.mask, config.default_rule,
                                        np.asarray(dataset.read_image(soft.path)),
                                        keep_components=config.keep_components))

    return float(np.mean(list(soft_masks(network, paths, config, device, finish=finish))))


def main() -> None:
    """Score every checkpoint both ways and print the correlation."""
    parser = parser_of(__doc__)
    parser.add_argument('runs', nargs='+', type=Path)
    for flag in ('--localizer', '--data_root', '--dataset'):
        parser.add_argument(flag, required=True)
    parser.add_argument('--device', default='auto')
    options = parser.parse_args()
    device, folder = pick_device(options.device), Path(options.data_root) / options.dataset
    flags = {'phase': 'test', 'dataset': options.dataset, 'device': options.device}
    localizer = checkpoints.read(Path(options.localizer))
    config = resolve(flags, localizer.config)
    score = LabelFreeScore(mask_network(localizer, config, device), config.size, device)
    train = dataset.training_images(folder)
    score.learn_normal(evenly_spaced(train['B'], SCORED_IMAGES))
    scored = evenly_spaced(train['A'], SCORED_IMAGES)
    labels = {case.image: case.label for case in dataset.validation_cases(folder)}

    def ja(path: Path, segmentation: np.ndarray) -> float:
        return segmentation_metrics(segmentation, dataset.read_label(labels[path], path))['JA']

    all_rows = []
    for run in options.runs:
        rows = []
        for path in checkpoints.numbered(run, options.dataset):
            source = checkpoints.read(path)
            config = resolve(flags, source.config)
            network = mask_network(source, config, device)
            rows.append((mean_over(network, config, device, scored, score),
                         mean_over(network, config, device, list(labels), ja)))
            print(f'{path}: score {rows[-1][0]:.1f}, val JA {rows[-1][1]:.1f}', flush=True)
        print(f'{run}: Spearman {spearmanr(rows).statistic:.2f} over {len(rows)}; JA of the best '
              f'by score {max(rows)[1]:.1f}, of the best by JA {max(row[1] for row in rows):.1f}, '
              f'of the last {rows[-1][1]:.1f}')
        all_rows += rows
    print(f'all: Spearman {spearmanr(all_rows).statistic:.2f} over {len(all_rows)}')


if __name__ == '__main__':
    main()
