"""Choosing on val: which checkpoint, and how its masks become segmentations."""
import json
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

import checkpoint as checkpoints
import dataset
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

    def figures_of(index):
        """(number of the source, rule, exponent) -> five figures of one case."""
        case = cases[index]
        image = np.asarray(dataset.read_picture(case.picture))
        label = dataset.read_label(case.label)
        made = pool.submit(segment_by_all, [of_source[index] for of_source in masks], image,
                           tries).result()
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
