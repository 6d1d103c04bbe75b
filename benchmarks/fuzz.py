"""Random command lines: each has to succeed or to end with one clear error and exit code 2.

    python benchmarks/fuzz.py [--count 1000] [--seed 0]

Draws options and values, sensible ones and others, and runs main.py with them on tiny images, in
this process. A traceback, another exit code or an error of several lines (but for a list of files)
is a failure and is printed with its command line; the exit code is 1 where there was one."""
import io
import random
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from common import fuzz_options

# isort: split
import config
import main
from helpers import TINY_FLAGS, draw_images, draw_labels

# small enough that what is allowed also ends soon
BY_TYPE = {int: ['-1', '0', '1', '2', '3', '4', '5', '8', '9', '1.5', 'x', '', '1e3', str(10 ** 9),
                 str(2 ** 70), '-9' * 30],
           float: ['-1', '0', '0.5', '1', '2', '180', '1e30', '1e-300', '1e400', 'nan', '-inf', 'x',
                   '', '0,5'],
           bool: ['True', 'False', '1', 'maybe', '']}
WORDS = ['', ' ', 'x', '../..', '/', 'a b', 'ü', '--', 'Tiny', 'phantom2', '\t', 'x' * 300]
VALUES = {'iteration': ['0', '1', '2', '3', '-5', 'x', '1.5'],
          'batch_size': ['0', '1', '2', '3', '-1', 'x', str(10 ** 9)],
          **dict.fromkeys(('normal_batch', 'n_res', 'num_workers'),
                          ['0', '1', '2', '-1', 'x', str(10 ** 9)]),
          'ch': ['0', '1', '2', '3', '4', '6', '-4', 'x', '5000', '4096'],
          'n_dis': ['0', '3', '4', '5', '6', '13', 'x'],
          'img_size': ['30', '32', '36', '48', '64', '33', '9000', '100000', '-32', '0', 'x'],
          'split': ['1', '0.5', '-1', 'x', '', 'nan'],
          'dataset': ['Tiny', 'Tiny', 'Tiny', *WORDS],
          'device': ['cpu', 'auto', 'cuda:7', 'mps', 'x', '']}


NEEDED = {  # what a phase cannot do without
    'predict': '--input {data}/Tiny/testA --output {results}/out',
    'export': '--output {results}/x.onnx',
    'prepare': '--source {data}/Tiny --source_format folders --dataset Prepared --overwrite True'}


class Paths(NamedTuple):
    """Tiny data, a folder for results, and files that an option may name."""

    data: Path
    results: Path
    image: Path
    checkpoints: list[Path]  # some of them are none


def values_of(name: str, paths: Paths) -> list[str]:
    """What an option may be given."""
    if name in VALUES:
        return VALUES[name]
    if name in ('checkpoint', 'teacher'):
        return [*map(str, paths.checkpoints), *WORDS]
    if name in ('data_root', 'result_dir'):
        return [str(paths.data), str(paths.results), str(paths.image), WORDS[2]]
    if name in ('input', 'labels', 'source', 'output'):
        existing = [paths.data / 'Tiny' / 'testA', paths.data / 'Tiny', paths.image]
        new = [paths.results / part for part in ('out', 'mask.png', 'mask.nii', 'x.onnx')]
        return [*map(str, new if name == 'output' else existing), 'absent', '', 'x' * 300]
    option = config.OPTIONS[name]
    if choices := [str(choice) for choice in option.metadata['choices']]:
        return [*choices, *choices, 'x', '']
    return BY_TYPE.get(option.type, WORDS)


def command_line(rng: random.Random, paths: Paths) -> list[str]:
    """Arguments; of an option given twice the last value counts, so the tiny ones come first."""
    names = [name for name in config.OPTIONS if name not in ('compile', 'amp')]
    arguments = ['--dataset', 'Tiny', '--data_root', paths.data, '--result_dir', paths.results,
                 *TINY_FLAGS, '--iteration', 1, '--batch_size', 1, '--normal_batch', 1]
    if rng.random() < 0.8:
        phase = rng.choice(['train'] * 8 + ['test', 'val', 'pseudo_mask'] * 4
                           + ['predict'] * 3 + ['prepare'] * 3 + ['export'])
        needed = [word.format(**paths._asdict()) for word in NEEDED.get(phase, '').split()]
        arguments += ['--phase', phase, *needed]
    if rng.random() < 0.8:
        arguments += ['--stage', rng.choice([0, 1, 2])]
    for name in rng.sample(names, rng.choice([0, 0, 1, 1, 2, 3, 6])):
        arguments.append(f'--{name}')
        if rng.random() < 0.97:
            arguments.append(rng.choice(values_of(name, paths)))
    if rng.random() < 0.03:
        arguments.insert(rng.randrange(len(arguments)), rng.choice(['--', '-x', '--no', 'stray']))
    return [str(argument) for argument in arguments]


def outcome(arguments: list[str]) -> tuple[int | None, str]:
    """The exit code (None for a traceback) and what was printed to stderr."""
    out, err = io.StringIO(), io.StringIO()
    with mock.patch('sys.argv', ['main.py', *arguments]):
        try:
            with redirect_stdout(out), redirect_stderr(err):
                return main.main(), err.getvalue()
        except SystemExit as leaving:  # of argparse
            return leaving.code, err.getvalue()
        except BaseException:
            return None, traceback.format_exc()


def is_fine(code: int | None, stderr: str) -> bool:
    """Whether it succeeded, or ended with one clear error and exit code 2."""
    if code == 0:
        return 'Traceback' not in stderr
    lines = [line for line in stderr.replace('\r', '\n').splitlines()
             if line.strip() and '%|' not in line and not line.startswith('  ')]
    return code == 2 and len(lines) == 1 and 'error: ' in lines[0]


def make_paths(root: Path) -> Paths:
    """Draw a tiny data set below root."""
    tiny = root / 'data' / 'Tiny'
    for part in ('trainA', 'testA', 'val/images'):
        draw_images(tiny / part, ['a0.png', 'a1.png'], bright_square=True)
    for part in ('trainB', 'testB'):
        draw_images(tiny / part, ['b0.png', 'b1.png'], seed=1)
    draw_labels(tiny / 'val' / 'labels', ['a0', 'a1'])
    draw_labels(tiny / 'test' / 'labels', ['a0'])
    results, image = root / 'results', tiny / 'trainA/a0.png'
    best = [results / f'Tiny/model{stage}/best.pt' for stage in (0, 1, 2)]
    return Paths(root / 'data', results, image, [*best, image, tiny])


def run(count: int, seed: int, report: Callable[[str], object] = print) -> list[list[str]]:
    """Run that many; the command lines that failed."""
    rng, failures, codes = random.Random(seed), [], Counter()
    # stages 0 and 2 as small as the flags make stage 1
    small = {'ch': 4, 'img_size': 32, 'iteration': 1, 'batch_size': 1}
    presets = tuple(({'method': method}, small) for method in ('localizer', 'student'))
    with (tempfile.TemporaryDirectory() as root,
          mock.patch.object(config, 'PRESETS', config.PRESETS + presets)):
        paths = make_paths(Path(root))
        for number in range(count):
            arguments = command_line(rng, paths)
            code, stderr = outcome(arguments)
            codes[code] += 1
            if number % 100 == 99:
                report(f'{number + 1} done')
            if not is_fine(code, stderr):
                failures.append(arguments)
                report(f'{number}: exit code {code}: main.py {" ".join(map(repr, arguments))}\n'
                       f'{stderr[-1500:]}')
    report(f'{count} command lines, exit codes {dict(codes)}, {len(failures)} failures')
    return failures


if __name__ == '__main__':
    options = fuzz_options(__doc__, count=1000)
    sys.exit(1 if run(options.count, options.seed) else 0)
