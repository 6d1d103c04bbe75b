"""Networks on labeled or unlabeled cases: soft masks, segmentations and metrics of all of them."""
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import checkpoint as checkpoints
import dataset
from config import NETWORKS_OF, Config
from inference.metrics import all_metrics, segmentation_metrics
from inference.plausibility import small_mask
from inference.postprocess import RULES_WITH_IMAGE, to_segmentation, worker_pool
from inference.soft_masks import SoftMask, mask_network, soft_masks
from reporting.results import ResultFolder
from runtime import distributed
from utils import progress_interval

NEARLY_ALL = 0.9  # of the image; a segmentation of more is reported


class CaseResult(NamedTuple):
    metrics: dict[str, float] | None  # percent; None without a label
    is_blank: bool  # whether the segmentation is empty or covers nearly all of the image
    small_mask: np.ndarray  # the soft mask, see plausibility.small_mask


def val_masks(source: checkpoints.Checkpoint, config: Config, paths: list[Path],
              conditioning: dict[str, Path] | None, device: torch.device) -> list[np.ndarray]:
    """The soft masks, H×W uint8 each, that the network of a checkpoint makes of images."""
    mine = distributed.shard(paths)
    masks = soft_masks(mask_network(source, config, device), mine, config, device, conditioning,
                       finish=lambda soft: soft.mask)
    return distributed.gather(list(tqdm(masks, source.path.name, len(mine), unit=' images',
                                        mininterval=progress_interval())))


def val_metrics(network: nn.Module, cases: list[dataset.Case], config: Config,
                device: torch.device, conditioning: dict[str, Path] | None, rules: list[str]
                ) -> list[list[dict[str, float]]]:
    """For each labeled case, its metrics by each rule of post-processing."""
    by_path = {case.image: case for case in distributed.shard(cases)}
    def metrics_of(soft: SoftMask) -> list[dict[str, float]]:
        image = np.asarray(dataset.read_image(soft.path))
        label = dataset.read_label(by_path[soft.path].label, soft.path)
        return [segmentation_metrics(to_segmentation(
            soft.mask, rule, image, config.crf_t or 1, config), label) for rule in rules]

    return distributed.gather(list(soft_masks(network, list(by_path), config, device, conditioning,
                                              finish=metrics_of)))


def test_cases(network: nn.Module, cases: list[dataset.Case], config: Config, device: torch.device,
               rule: str, exponent: float, results: ResultFolder,
               teacher_masks: dict[str, Path] | None) -> list[CaseResult]:
    """Write soft mask, segmentation and images of every case; with rule `none` soft masks alone."""
    by_path = {case.image: case for case in distributed.shard(cases)}
    def write(soft: SoftMask) -> CaseResult:
        case = by_path[soft.path]
        results.write_network_output(case, soft, teacher_masks and teacher_masks[case.name])
        if rule == 'none':
            return CaseResult(None, False, small_mask(soft.mask))
        image = (np.asarray(dataset.read_image(case.image))
                 if rule in RULES_WITH_IMAGE or config.save_visuals else None)
        label = dataset.read_label(case.label, case.image) if case.label else None
        segmentation = to_segmentation(soft.mask, rule, image, exponent, config, pool)
        results.write_segmentation(case, segmentation, image if config.save_visuals else None,
                                   label)
        metrics = None if label is None else {
            'name': case.name, **all_metrics(segmentation, label)}
        return CaseResult(metrics, not 0 < segmentation.mean() <= NEARLY_ALL,
                          small_mask(soft.mask))

    with worker_pool() if rule == 'crf' else nullcontext() as pool:
        rows = soft_masks(network, list(by_path), config, device,
                          teacher_masks if config.takes_conditioning else None,
                          config.save_visuals, write)
        return distributed.gather(list(tqdm(rows, 'testing', len(by_path), unit=' images',
                                            mininterval=progress_interval())))


def translate_normal(source: checkpoints.Checkpoint, config: Config, device: torch.device,
                     results: ResultFolder, problems: dataset.Problems) -> None:
    """The normal images of testB through genB2A, as translation_B/, where there is such a network;
    images that cannot be used go to `problems`."""
    folder = config.data_folder / 'testB'
    if 'genB2A' not in NETWORKS_OF[config.method] or not folder.is_dir():
        return
    if 'genB2A' not in source.networks:
        print('no translations of testB: the checkpoint holds no genB2A')
        return
    paths = dataset.list_images(folder, problems)
    dataset.check_images(paths, problems)
    network = mask_network(source, config, device, 'genB2A')
    list(soft_masks(
        network, distributed.shard(problems.without(paths)), config, device, with_translations=True,
        finish=lambda soft: results.write('translation_B', soft.path.stem, soft.translation)))
