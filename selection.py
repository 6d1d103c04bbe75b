"""Choosing on val: which checkpoint, and how its masks become segmentations."""
import json
import os
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import checkpoint as checkpoints
import dataset
import losses
import parallel
from metrics import FIGURES, five_figures, mean_figures
from postprocess import EXPONENTS, RULES, clear_corners, segment_by_all, worker_pool
from utils import UserError, ahead, bar_interval, cores


def score(cases: list[dataset.Case], sources, masks: list[list[np.ndarray]]) -> list[dict]:
    """A row for each checkpoint, rule and exponent, best JA first.

    `sources` are (checkpoint, its settings); `masks` their soft masks of the cases. Of the
    settings, postprocess and crf_t narrow down what is tried.
    """
    tries = [rules_to_try(settings) for _, settings in sources]
    lesions = sources[0][1].lesions

    def figures_of(index):
        """(number of the source, rule, exponent) -> five figures of one case."""
        case = cases[index]
        image = np.asarray(dataset.read_picture(case.picture))
        label = dataset.read_label(case.label)
        made = pool.submit(segment_by_all, [of_source[index] for of_source in masks], image,
                           tries, lesions).result()
        return {(number, rule, exponent): five_figures(
                    clear_corners(segmentation) if settings.clear_corners else segmentation, label)
                for number, ((_, settings), by_rule) in enumerate(zip(sources, made))
                for (rule, exponent), segmentation in by_rule.items()}

    figures = {}  # (number of the source, rule, exponent) -> five figures of each case
    with worker_pool() as pool:
        for of_case in parallel.gather(list(tqdm(
                ahead(figures_of, parallel.my_share(range(len(cases))), cores()),
                'post-processing', len(parallel.my_share(cases)), unit=' images',
                mininterval=bar_interval()))):
            for key, values in of_case.items():
                figures.setdefault(key, []).append(values)
    rows = [{'file': sources[number][0].path.name, 'iteration': sources[number][0].iteration,
             'fingerprint': checkpoints.fingerprint(sources[number][0]),
             'rule': rule, 'crf_t': exponent, **mean_figures(of_cases)}
            for (number, rule, exponent), of_cases in figures.items()]
    return sorted(rows, key=lambda row: -row['JA'])


class LabelFreeScore:
    """How good segmentations are, told without labels: paint over what was segmented, and the
    picture should look normal to the locator, while little was painted over.

    Score of a picture = 100·((e − e') / (e − n) − a), with e the pooled evidence of disease
    (`losses.pool`), e' that of the picture with the segmentation painted over from its surroundings
    (Telea 2004), n the mean over normal pictures, and a the segmentation's share of the picture.
    The first term is cut to [0, 1].
    """

    def __init__(self, locator: torch.nn.Module, size: tuple[int, int], device: torch.device):
        self.locator = locator
        self.size = size
        self.device = device
        self.normal = 0.0

    def learn_normal(self, paths: list[Path]) -> None:
        """Take n from these normal pictures."""
        self.normal = float(np.mean([self.evidence(self._read(path)) for path in paths]))

    def _read(self, path):
        return np.asarray(dataset.resize(dataset.read_picture(path), self.size))

    @torch.inference_mode()
    def evidence(self, image: np.ndarray) -> float:
        """Pooled evidence of disease in a picture H×W×3 uint8 of the locator's size."""
        tensor = dataset.to_tensor(Image.fromarray(image))[None].to(self.device)
        return float(losses.pool(self.locator.evidence_over_views(tensor)))

    def __call__(self, path: Path, segmentation: np.ndarray) -> float:
        """The score, percent, of a segmentation H×W bool of a picture of any size."""
        image = self._read(path)
        there = cv2.resize(segmentation.astype(np.uint8), image.shape[1::-1],
                           interpolation=cv2.INTER_NEAREST)
        area = float(there.mean())
        painted = cv2.inpaint(image, cv2.dilate(there, np.ones((3, 3), np.uint8)), 3,
                              cv2.INPAINT_TELEA)
        before, after = self.evidence(image), self.evidence(painted)
        removed = (before - after) / max(before - self.normal, 1e-6)
        return 100 * (min(max(removed, 0), 1) - area)


def rules_to_try(settings) -> list[tuple[str, tuple]]:
    """(rule, exponents of the CRF)."""
    rules = RULES if settings.postprocess == 'auto' else (settings.postprocess,)
    return [(rule, (settings.crf_t,) if settings.crf_t else EXPONENTS) for rule in rules]


def text(row: dict) -> str:
    """A rule in words."""
    return row['rule'] + (f', t {row["crf_t"]:g}' if row['crf_t'] else '')


def table(rows: list[dict]) -> str:
    """The rows to print."""
    width = max(len(row['file']) for row in rows)
    lines = ['checkpoint'.ljust(width) + '  iteration  post-processing'
             + ''.join(f'{figure:>7}' for figure in FIGURES) + '  percent']
    for row in rows:
        lines.append(f'{row["file"]:{width}}{row["iteration"]:11}  {text(row):15}'
                     + ''.join(f'{row[figure]:7.1f}' for figure in FIGURES))
    return '\n'.join(lines)


def write(folder: Path, dataset_name: str, images: int, rows: list[dict]) -> None:
    """val.json: every row, best first."""
    temporary = folder / '.val.json.tmp'
    temporary.write_text(json.dumps({'dataset': dataset_name, 'images': images, 'best': rows[0],
                                     'rows': rows}, indent=1) + '\n')
    os.replace(temporary, folder / 'val.json')


def chosen_rule(settings, chosen: dict) -> tuple[str, float]:
    """The rule of post-processing and the CRF's exponent: what the user said, else what val chose for
    the checkpoint (`stored_choice`), else the default."""
    rule = settings.postprocess
    if rule == 'auto':
        rule = chosen.get('rule', settings.default_rule)
    return rule, settings.crf_t or chosen.get('crf_t') or 1


def stored_choice(source: checkpoints.Checkpoint) -> dict:
    """What val chose for the networks in this checkpoint: rule and crf_t; {} if it never did.

    crf_t is the best exponent, also where another rule was better.
    """
    path = source.path.with_name('val.json')
    if not path.is_file():
        return {}
    try:
        rows = [row for row in json.loads(path.read_text())['rows']
                if row['fingerprint'] == checkpoints.fingerprint(source)]
        best = {row['rule']: row for row in reversed(rows)}
        choice = {'rule': rows[0]['rule']} if rows else {}
        if 'crf' in best:
            choice['crf_t'] = float(best['crf']['crf_t'])
        if choice.get('rule', RULES[0]) not in RULES:
            raise ValueError(choice['rule'])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path}: cannot be read as the choice of --phase val ({error!r}); run '
                        '--phase val again, or remove it') from None
    return choice
