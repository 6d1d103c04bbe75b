"""Stage 1, the published stage 2 and ours, with every rule of post-processing, on test.

    python benchmarks/stage2.py OUTPUT --data_root DATA [--sets phantom ISIC LGG] [--seeds 0 1 2]

Trains what is missing in OUTPUT (a run that was stopped goes on), chooses checkpoints and CRF
exponents on val, scores test, and prints the tables; stage2.json in OUTPUT holds every figure.
"""
import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))
import checkpoint as checkpoints  # noqa: E402
import dataset  # noqa: E402
import settings as presets  # noqa: E402
from masks import Teacher, choose_teacher, mask_network, soft_masks  # noqa: E402
from metrics import five_figures, paired_bootstrap  # noqa: E402
from postprocess import RULES, segment  # noqa: E402
from selection import stored_choice  # noqa: E402
from utils import pick_device  # noqa: E402

METHODS = {'stage 1': ['--stage', '1', '--recipe', 'published'],
           'published': ['--stage', '2', '--scheme', 'published'],
           'student': ['--stage', '2', '--scheme', 'student', '--recipe', 'published', '--turn', '180']}
STAGE_1 = {  # the settings of the stage-1 benchmark
    'phantom': [],
    'ISIC': ['--ch', '16', '--img_size', '128', '--iteration', '600'],
    'LGG': ['--ch', '16', '--img_size', '128', '--iteration', '400', '--adv_weight', '10',
            '--lr', '1e-4']}


def program(*arguments):
    command = [sys.executable, str(PROJECT / 'main.py'), *map(str, arguments)]
    print('+', *command[1:], flush=True)
    subprocess.run(command, check=True)


def train_and_choose(name, method, seed, output, data_root, extra):
    """Train one network unless it is there, and let val choose; the chosen checkpoint."""
    folder = output / f'{name}_{seed}' / method.replace(' ', '')
    stage = METHODS[method][1]
    places = ['--dataset', name, '--data_root', data_root, '--result_dir', folder]
    run = folder / name / f'model{stage}'
    if not (run / 'val.json').is_file():
        flags = list(METHODS[method])
        if method == 'stage 1':
            flags += STAGE_1[name]
        else:
            flags += ['--teacher', output / f'{name}_{seed}' / 'stage1' / name / 'model1/best.pt']
        program(*places, '--phase', 'train', *flags, '--seed', seed, '--resume', 'True',
                *(extra if method == 'student' else []))
        program(*places, '--phase', 'val', '--stage', stage, '--checkpoint', run / 'best.pt')
    return run / 'best.pt'


def figures_on_test(path, name, data_root, result_dir):
    """By rule: the five figures of every test picture, with the CRF's exponent chosen on val."""
    source = checkpoints.read(path)
    flags = {'phase': 'test', 'data_root': str(data_root), 'result_dir': str(result_dir),
             'dataset': name}
    settings = presets.resolve(flags, source.settings)
    device = pick_device(settings.device)
    cases = [case for case in dataset.find_cases(settings.data_folder, 'test') if case.label]
    companions = None
    if settings.stage == 2 and settings.scheme == 'published':
        teacher = Teacher(settings, choose_teacher(settings, path.parent), device)
        companions = teacher.masks('testA', [case.picture for case in cases])
    exponent = stored_choice(source)['crf_t']
    made = soft_masks(mask_network(source, settings, device), [case.picture for case in cases],
                      settings, device, companions)
    rows = {rule: [] for rule in RULES}
    for case, soft in tqdm(zip(cases, made), f'{path.parent}', len(cases), mininterval=10):
        image, label = np.asarray(dataset.read_picture(case.picture)), dataset.read_label(case.label)
        for rule in RULES:
            rows[rule].append(five_figures(segment(soft.mask, rule, image, exponent), label))
    return {'chosen': stored_choice(source), 'rows': rows}


def mean_and_spread(values):
    return f'{np.mean(values):.1f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.1f}'


def print_tables(name, results, seeds):
    """JA by method and rule, mean ± standard deviation over seeds; gains with intervals."""
    ja = {(method, rule): np.array([[row['JA'] for row in results[method, seed]['rows'][rule]]
                                    for seed in seeds]) for method in METHODS for rule in RULES}
    chosen = {method: np.array([
        [row['JA'] for row in results[method, seed]['rows'][results[method, seed]['chosen']['rule']]]
        for seed in seeds]) for method in METHODS}
    print(f'\n| {name} | ' + ' | '.join(RULES) + ' | rule chosen on val |')
    print('|---' * (len(RULES) + 2) + '|')
    for method in METHODS:
        cells = [mean_and_spread(ja[method, rule].mean(1)) for rule in RULES]
        rules = ', '.join(results[method, seed]['chosen']['rule'] for seed in seeds)
        print(f'| {method} | ' + ' | '.join(cells)
              + f' | {mean_and_spread(chosen[method].mean(1))} ({rules}) |')
    for other in ('published', 'student'):
        gains = []
        for rule in RULES:
            one, two = (ja[method, rule].mean(0) for method in ('stage 1', other))
            low, high = paired_bootstrap(one, two)
            gains.append(f'{(two - one).mean():+.1f} [{low:.1f}, {high:.1f}]')
        print(f'| {other} − stage 1 | ' + ' | '.join(gains) + ' | |')


def main():
    """Train and choose what is missing, score test, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('output', type=Path)
    parser.add_argument('--data_root', type=Path, required=True)
    parser.add_argument('--sets', nargs='+', default=list(STAGE_1), choices=STAGE_1)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--student_flags', nargs=argparse.REMAINDER, default=[],
                        help='flags of main.py for our stage 2 (last)')
    options = parser.parse_args()
    everything = {}
    for name in options.sets:
        data_root = PROJECT / 'dataset' if name == 'phantom' else options.data_root
        results = {}
        for seed in options.seeds:
            for method in METHODS:
                path = train_and_choose(name, method, seed, options.output, data_root,
                                        options.student_flags)
                results[method, seed] = figures_on_test(path, name, data_root,
                                                        path.parent.parent.parent)
        print_tables(name, results, options.seeds)
        everything[name] = {f'{method}, seed {seed}': result
                            for (method, seed), result in results.items()}
    (options.output / 'stage2.json').write_text(json.dumps(everything, indent=1) + '\n')


if __name__ == '__main__':
    main()
