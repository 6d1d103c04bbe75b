"""Choosing on val: which checkpoint, and how its soft masks become segmentations."""
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import checkpoint as checkpoints
import dataset
from config import Config
from inference.metrics import METRICS, all_metrics, mean_metrics, segmentation_metrics
from inference.postprocess import (
    EXPONENTS,
    RULES,
    clear_corners,
    segment,
    segment_by_all,
    worker_pool,
)
from networks import pool_logits
from runtime import distributed
from runtime.files import TEXT, atomic_write
from runtime.threads import cpu_count, prefetch
from utils import UserError, progress_interval


def score(cases: list[dataset.Case], sources: list[tuple[checkpoints.Checkpoint, Config]],
          masks: list[list[np.ndarray]]) -> list[dict[str, Any]]:
    """A row for each checkpoint, rule and exponent, best JA first: file, iteration, fingerprint,
    rule, crf_t (None for all rules but crf), the mean metrics, and for how many images distances
    are undefined. `sources` come with the Config that each runs with; `masks` are the soft masks,
    H×W uint8, of each source and case."""
    rules = [[(rule, (config.crf_t,) if config.crf_t else EXPONENTS)
              for rule in (RULES if config.postprocess == 'auto' else (config.postprocess,))]
             for _, config in sources]
    def metrics_of(index: int) -> dict[tuple[int, str, float | None], dict[str, float]]:
        image = np.asarray(dataset.read_image(cases[index].image))
        label = dataset.read_label(cases[index].label, cases[index].image)
        by_source = pool.submit(segment_by_all, [of_source[index] for of_source in masks], image,
                                rules, sources[0][1].keep_components).result()
        metrics = {}
        for number, by_rule in enumerate(by_source):
            for rule_and_exponent, segmentation in by_rule.items():
                if sources[number][1].clear_corners:
                    segmentation = clear_corners(segmentation)
                metrics[(number, *rule_and_exponent)] = all_metrics(segmentation, label)
        return metrics

    indices = distributed.shard(range(len(cases)))
    with worker_pool() as pool:
        results = tqdm(prefetch(metrics_of, indices, cpu_count()), 'post-processing', len(indices),
                       unit=' images', mininterval=progress_interval())
        results = distributed.gather(list(results))
    rows = []
    for number, rule, exponent in results[0]:
        source = sources[number][0]
        scored = [metrics[number, rule, exponent] for metrics in results]
        means = mean_metrics(scored)
        rows.append({'file': source.path.name, 'iteration': source.iteration,
                     'fingerprint': checkpoints.fingerprint(source), 'rule': rule,
                     'crf_t': exponent, **means,
                     'undefined': sum(of_image['HD95'] is None for of_image in scored)})
    return sorted(rows, key=lambda row: -row['JA'])


def score_rules(rules: Sequence[str], paths: list[Path], soft_masks: dict[str, Path],
                quality: Callable[[Path, np.ndarray], float],
                keep_components: str) -> dict[str, float]:
    """The mean quality, percent, of images' segmentations by each rule. `soft_masks` are files by
    the images' stems; `quality` takes an image's file and its segmentation H×W bool."""
    def of_image(path: Path) -> list[float]:
        image = np.asarray(dataset.read_image(path))
        mask = np.asarray(dataset.read_image(soft_masks[path.stem], 1))
        return [quality(path, segment(mask, rule, image, 1, keep_components)) for rule in rules]

    rows = distributed.gather(list(prefetch(of_image, distributed.shard(paths), cpu_count())))
    return dict(zip(rules, np.mean(rows, 0).tolist(), strict=True))


def score_rules_on_val(rules: Sequence[str], cases: list[dataset.Case],
                       soft_masks: dict[str, Path], keep_components: str) -> dict[str, float]:
    """As `score_rules`; the quality is JA, percent."""
    labels = {case.image: case.label for case in cases}

    def ja(path: Path, segmentation: np.ndarray) -> float:
        return segmentation_metrics(segmentation, dataset.read_label(labels[path], path))['JA']

    return score_rules(rules, list(labels), soft_masks, ja, keep_components)


class LabelFreeScore:
    """The quality of segmentations without labels: with what was segmented inpainted, the image
    should look normal to the localizer, while little was inpainted. Score of an image =
    100·((e − e') / (e − n) − a), the first term clipped to [0, 1]: e is the localizer's pooled
    logit (`networks.pool_logits`), e' that after inpainting (Telea 2004), n the mean over normal
    images, a the segmentation's share of the image. Source: ours."""

    def __init__(self, localizer: torch.nn.Module, size: tuple[int, int],
                 device: torch.device) -> None:
        """`size` is the height and width, px, that the localizer sees images at."""
        self.localizer, self.size, self.device, self.normal = localizer, size, device, 0.0

    def learn_normal(self, paths: list[Path]) -> None:
        """Take n from these normal images."""
        self.normal = float(np.mean([self.pooled_logit(self._read(path)) for path in paths]))

    def _read(self, path: Path) -> np.ndarray:
        return np.asarray(dataset.resize(dataset.read_image(path), self.size))

    @torch.inference_mode()
    def pooled_logit(self, image: np.ndarray) -> float:
        """The localizer's pooled logit of disease for an image H×W×3 uint8 of its size."""
        tensor = dataset.to_tensor(Image.fromarray(image))[None].to(self.device)
        return float(pool_logits(self.localizer.logits_over_views(tensor)))

    def __call__(self, path: Path, segmentation: np.ndarray) -> float:
        """The score, percent, of a segmentation H×W bool of an image of any size."""
        image = self._read(path)
        lesion = cv2.resize(segmentation.astype(np.uint8), image.shape[1::-1],
                            interpolation=cv2.INTER_NEAREST)
        area = float(lesion.mean())
        around = cv2.dilate(lesion, np.ones((3, 3), np.uint8))
        inpainted = cv2.inpaint(image, around, 3, cv2.INPAINT_TELEA)
        before, after = self.pooled_logit(image), self.pooled_logit(inpainted)
        removed = (before - after) / max(before - self.normal, 1e-6)
        return 100 * (min(max(removed, 0), 1) - area)


def rule_text(row: dict[str, Any]) -> str:
    """A rule and its exponent, to print."""
    return row['rule'] + (f', t {row["crf_t"]:g}' if row['crf_t'] else '')


def table(rows: list[dict[str, Any]]) -> str:
    """Of the rows of `score` the best of each checkpoint, to print."""
    best = {}
    for row in rows:
        best.setdefault(row['fingerprint'], row)
    rows = list(best.values())
    width = max(len(row['file']) for row in rows)
    lines = ['checkpoint'.ljust(width) + '  iteration  post-processing'
             + ''.join(f'{metric:>7}' for metric in METRICS) + '  percent, 0 to 100']
    lines += [f'{row["file"]:{width}}{row["iteration"]:11}  {rule_text(row):15}'
              + ''.join(f'{row[metric]:7.1f}' for metric in METRICS) for row in rows]
    return '\n'.join(lines)


def write(folder: Path, images: int, config: Config, rows: list[dict[str, Any]]) -> None:
    """val.json: the number of images, the best row and all rows, best first."""
    content = {'dataset': config.dataset, 'images': images, 'quick': config.quick,
               'best': rows[0], 'rows': rows}
    with atomic_write(folder / 'val.json') as temporary:
        temporary.write_text(json.dumps(content, indent=1) + '\n')


def chosen_rule(config: Config, checkpoint: checkpoints.Checkpoint) -> tuple[str, float]:
    """The rule of post-processing and the CRF's exponent: what the user said, else what val chose
    for the checkpoint, else the default."""
    choice = stored_choice(checkpoint, config)
    rule = (config.postprocess if config.postprocess != 'auto'
            else choice.get('rule', config.default_rule))
    return rule, config.crf_t or choice.get('crf_t') or 1


def origin_of_rule(config: Config, checkpoint: checkpoints.Checkpoint) -> str:
    """Where the rule of `chosen_rule` comes from, to print."""
    if config.postprocess != 'auto':
        return 'given by --postprocess'
    if 'rule' in stored_choice(checkpoint, config):
        return 'chosen on val'
    of_labels = config.method == 'student' and config.pseudo_label_rule != 'auto'
    return ('the rule of its pseudo-labels' if of_labels else 'the default') + (
        ', since --phase val has not scored this checkpoint')


def choice_folder(config: Config, checkpoint: checkpoints.Checkpoint) -> Path:
    """Where val.json and report.html of a checkpoint are written: the folder of its run; of one
    that lies elsewhere, where files are the user's, val<stage> of the result folder."""
    folder = checkpoint.path.parent
    return (folder if folder.resolve() == config.run_folder.resolve()
            else config.result_folder / f'val{config.stage}')


def stored_choice(checkpoint: checkpoints.Checkpoint, config: Config) -> dict[str, Any]:
    """What val chose for a checkpoint, by val.json of `choice_folder` or else beside it: rule, and
    crf_t, the best exponent even where another rule was better; {} if val never scored it. Raises
    UserError."""
    beside = checkpoint.path.with_name('val.json')
    return (_choice_in(choice_folder(config, checkpoint) / 'val.json', checkpoint)
            or _choice_in(beside, checkpoint))


def _choice_in(path: Path, checkpoint: checkpoints.Checkpoint) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        rows = [row for row in json.loads(path.read_text(**TEXT))['rows']
                if row['fingerprint'] == checkpoints.fingerprint(checkpoint)]
        best = {row['rule']: row for row in reversed(rows)}
        choice = {'rule': rows[0]['rule']} if rows else {}
        if 'crf' in best:
            choice['crf_t'] = float(best['crf']['crf_t'])
        if rows and choice['rule'] not in RULES:
            raise ValueError(choice['rule'])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path}: cannot be read as the choice of --phase val ({error!r}); run '
                        '--phase val again, or remove it') from None
    return choice
