"""Choosing on val: which checkpoint, and how its masks become segmentations."""
import json
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

import checkpoint as checkpoints
import dataset
from metrics import FIGURES, five_figures, mean_figures
from postprocess import (EXPONENTS, RULES, DenseCRF, clear_corners, crf_segmentations, segment,
                         shrink)
from utils import UserError, bar_interval


def score(cases: list[dataset.Case], sources, masks: list[list[np.ndarray]]) -> list[dict]:
    """A row for each checkpoint, rule and exponent, best JA first.

    `sources` are (checkpoint, its settings); `masks` their soft masks of the cases. Of the
    settings, postprocess and crf_t narrow down what is tried.
    """
    figures = {}  # (number of the source, rule, exponent) -> five figures of each case
    for index, case in enumerate(tqdm(cases, 'post-processing', unit=' images',
                                      mininterval=bar_interval())):
        image = np.asarray(dataset.read_picture(case.picture))
        label = dataset.read_label(case.label)
        crf = None
        for number, (_, settings) in enumerate(sources):
            mask = masks[number][index]
            for rule in rules_to_try(settings):
                if rule == 'crf':
                    crf = crf or DenseCRF(shrink(image))  # one serves all checkpoints
                    exponents = (settings.crf_t,) if settings.crf_t else EXPONENTS
                    made = crf_segmentations(mask, image, exponents, crf)
                else:
                    made = {None: segment(mask, rule)}
                for exponent, segmentation in made.items():
                    if settings.clear_corners:
                        segmentation = clear_corners(segmentation)
                    figures.setdefault((number, rule, exponent), []).append(
                        five_figures(segmentation, label))
    rows = [{'file': sources[number][0].path.name, 'iteration': sources[number][0].iteration,
             'fingerprint': checkpoints.fingerprint(sources[number][0]),
             'rule': rule, 'crf_t': exponent, **mean_figures(of_cases)}
            for (number, rule, exponent), of_cases in figures.items()]
    return sorted(rows, key=lambda row: -row['JA'])


def rules_to_try(settings) -> tuple[str, ...]:
    return RULES if settings.postprocess == 'auto' else (settings.postprocess,)


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
