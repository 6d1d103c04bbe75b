"""Random command lines: each has to succeed or to end with one clear error and exit code 2.

    python benchmarks/fuzz.py [--count 1000] [--seed 0]

Draws flags and values, sensible ones and others, and runs main.py with them on tiny pictures, in
this process. A traceback, another exit code or an error of several lines (but for a list of files)
counts as a failure and is printed with its command line; the exit code is 1 where there was one.
"""
import argparse
import io
import random
import sys
import tempfile
import traceback
from collections import Counter
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / 'tests')]
import main  # noqa: E402
import settings as presets  # noqa: E402
from conftest import TINY_FLAGS, draw, draw_labels  # noqa: E402

# small enough that what is allowed also ends soon
INTEGERS = ['-1', '0', '1', '2', '3', '4', '5', '8', '9', '1.5', 'x', '', '1e3', str(10 ** 9),
            str(2 ** 70), '-9' * 30]
FLOATS = ['-1', '0', '0.5', '1', '2', '180', '1e30', '1e-300', '1e400', 'nan', '-inf', 'x', '', '0,5']
WORDS = ['', ' ', 'x', '../..', '/', 'a b', 'ü', '--', 'Tiny', 'phantom2', '\t', 'x' * 300]
SIZES = ['30', '32', '36', '48', '64', '33', '9000', '100000', '-32', '0', 'x']
LONG = {'iteration': ['0', '1', '2', '3', '-5', 'x', '1.5'],
        'batch_size': ['0', '1', '2', '3', '-1', 'x', str(10 ** 9)],
        'normal_batch': ['0', '1', '2', '-1', 'x', str(10 ** 9)],
        'ch': ['0', '1', '2', '3', '4', '6', '-4', 'x', '5000', '4096'],
        'n_res': ['0', '1', '2', '-1', 'x', str(10 ** 9)],
        'n_dis': ['0', '3', '4', '5', '6', '13', 'x'],
        'num_workers': ['0', '1', '2', '-1', 'x', str(10 ** 9)], 'img_size': SIZES}


# what a phase cannot do without
NEEDED = {
    'predict': lambda places: ('--input', places['data'] / 'Tiny' / 'testA',
                               '--output', places['results'] / 'out'),
    'export': lambda places: ('--output', places['results'] / 'x.onnx'),
    'prepare': lambda places: ('--source', places['data'] / 'Tiny', '--source_format', 'folders',
                               '--dataset', 'Made', '--overwrite', 'True'),
}


def values_of(name, kind, places):
    """What a flag may be given."""
    if name in LONG:
        return LONG[name]
    if name in ('checkpoint', 'teacher'):
        return [*map(str, places['files']), *WORDS]
    if name in ('data_root', 'result_dir'):
        return [str(places['data']), str(places['results']), str(places['file']), *WORDS[2:3]]
    if name in ('input', 'source', 'output'):
        there = [places['data'] / 'Tiny' / 'testA', places['data'] / 'Tiny', places['file']]
        inside = [places['results'] / part for part in ('out', 'mask.png', 'mask.nii', 'x.onnx')]
        return [*map(str, inside if name == 'output' else there), 'absent', '', 'x' * 300]
    if name == 'split':
        return ['1', '0.5', '-1', 'x', '', 'nan']
    if name == 'dataset':
        return ['Tiny', 'Tiny', 'Tiny', *WORDS]
    if name == 'device':
        return ['cpu', 'auto', 'cuda:7', 'mps', 'x', '']
    if isinstance(kind, tuple):
        return [*map(str, kind), *map(str, kind), 'x', '']
    return {int: INTEGERS, float: FLOATS, main.boolean: ['True', 'False', '1', 'maybe', '']}.get(
        kind, WORDS)


def command_line(rng, places):
    """A list of arguments; what comes last counts, so the tiny settings come first."""
    flags = [(name, kind) for group in main.FLAGS.values() for name, kind, *_ in group
             if name not in ('compile', 'amp')]
    arguments = ['--dataset', 'Tiny', '--data_root', places['data'], '--result_dir',
                 places['results'], *TINY_FLAGS, '--iteration', 1, '--batch_size', 1,
                 '--normal_batch', 1]
    if rng.random() < 0.8:
        phase = rng.choice(['train'] * 8 + ['test', 'val', 'pseudo_mask'] * 4
                           + ['predict'] * 3 + ['prepare'] * 3 + ['export'])
        arguments += ['--phase', phase, *NEEDED.get(phase, lambda _: ())(places)]
    if rng.random() < 0.8:
        arguments += ['--stage', rng.choice([0, 1, 2])]
    for name, kind in rng.sample(flags, rng.choice([0, 0, 1, 1, 2, 3, 6])):
        arguments.append(f'--{name}')
        if rng.random() < 0.97:
            arguments.append(rng.choice(values_of(name, kind, places)))
    if rng.random() < 0.03:
        arguments.insert(rng.randrange(len(arguments)), rng.choice(['--', '-x', '--no', 'stray']))
    return [str(argument) for argument in arguments]


def patched_presets():
    """Stages 0 and 2 as small as the flags make stage 1."""
    small = {'ch': 4, 'img_size': 32, 'iteration': 1, 'batch_size': 1}
    stack = ExitStack()
    for defaults in (presets.LOCATOR_DEFAULTS, presets.STUDENT_DEFAULTS):
        stack.enter_context(mock.patch.dict(defaults, small))
    return stack


def outcome(arguments):
    """The exit code (None for a traceback) and what was printed to stderr."""
    out, err = io.StringIO(), io.StringIO()
    with mock.patch('sys.argv', ['main.py', *arguments]), redirect_stdout(out), redirect_stderr(err):
        try:
            code = main.main()
        except SystemExit as leaving:  # of argparse
            code = leaving.code
        except BaseException:
            return None, traceback.format_exc()
    return code, err.getvalue()


def is_fine(code, said):
    if code == 0:
        return 'Traceback' not in said
    lines = [line for line in said.replace('\r', '\n').splitlines()
             if line.strip() and '%|' not in line and not line.startswith('  ')]
    return code == 2 and len(lines) == 1 and 'error: ' in lines[0]


def make_places(root):
    """Tiny data, a folder for results, and files that a checkpoint flag may name."""
    tiny = root / 'data' / 'Tiny'
    for part in ('trainA', 'testA', 'val/images'):
        draw(tiny / part, ['a0.png', 'a1.png'], bright_square=True)
    for part in ('trainB', 'testB'):
        draw(tiny / part, ['b0.png', 'b1.png'], seed=1)
    draw_labels(tiny / 'val' / 'labels', ['a0', 'a1'])
    draw_labels(tiny / 'test' / 'labels', ['a0'])
    results = root / 'results'
    return {'data': root / 'data', 'results': results, 'file': tiny / 'trainA' / 'a0.png',
            'files': [results / 'Tiny' / f'model{stage}' / 'best.pt' for stage in (0, 1, 2)]
            + [tiny / 'trainA' / 'a0.png', tiny]}


def run(count, seed, report=print):
    """Run that many; the command lines that failed."""
    rng = random.Random(seed)
    failures, codes = [], Counter()
    with tempfile.TemporaryDirectory() as root:
        places = make_places(Path(root))
        for number in range(count):
            arguments = command_line(rng, places)
            with patched_presets():
                code, said = outcome(arguments)
            codes[code] += 1
            if number % 100 == 99:
                report(f'{number + 1} done')
            if not is_fine(code, said):
                failures.append(arguments)
                report(f'{number}: exit code {code}: main.py {" ".join(map(repr, arguments))}\n'
                       f'{said[-1500:]}')
    report(f'{count} command lines, exit codes {dict(codes)}, {len(failures)} failures')
    return failures


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--count', type=int, default=1000)
    parser.add_argument('--seed', type=int, default=0)
    options = parser.parse_args()
    sys.exit(1 if run(options.count, options.seed) else 0)
