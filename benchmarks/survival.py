"""Runs that are killed over and over, a long run, a full disk: what is lost, what grows.

    python benchmarks/survival.py kill [--kills 200] [--seed 0]
    python benchmarks/survival.py long [--iterations 5000] [--stage 1]
    python benchmarks/survival.py disk [--megabytes 12]

kill: a run that saves after every iteration is ended with SIGKILL at random moments and resumed;
    every file that is there afterwards has to be whole, and iterations may only be lost since the
    last checkpoint.
long: memory, files and threads of a run, after its warm-up and at its end.
disk: a run on a file system of that size (needs root, Linux): the disk fills up, the run ends in
    order, and goes on when there is room."""
import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from common import PROJECT, parser_of, resident_memory

# isort: split
import checkpoint as checkpoints
from fuzz import Paths, make_paths
from helpers import STAGE_1, TINY_FLAGS
from reporting import curves


def command(paths: Paths, *arguments: Any) -> list[str]:
    """A training of the tiny data set by tiny networks."""
    return [sys.executable, str(PROJECT / 'main.py'), '--phase', 'train', '--dataset', 'Tiny',
            '--data_root', str(paths.data), '--result_dir', str(paths.results),
            *TINY_FLAGS, '--batch_size', '1', *map(str, arguments)]


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder with its bytes."""
    return {path: path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def newest(folder: Path) -> int:
    """The iteration of a run's newest checkpoint, 0 before there is one."""
    paths = checkpoints.numbered(folder, 'Tiny')
    return int(paths[-1].stem[-7:]) if paths else 0


class KillTest:
    """One run, killed and resumed; counts what went wrong."""

    def __init__(self, paths: Paths, rng: random.Random) -> None:
        self.paths, self.rng = paths, rng
        self.folder = paths.results / 'Tiny/model1'
        self.losses = paths.results / 'Tiny/log1/losses.csv'
        self.damaged = self.failed = self.lost = self.most_lost = self.reached = 0

    def start_and_kill(self, number: int) -> None:
        """Half of the kills come while it starts, half while it saves."""
        flags = '--iteration', 10 ** 6, '--save_freq', 1, '--print_freq', 7, '--resume', 'True'
        running = subprocess.Popen(command(self.paths, *STAGE_1, *flags),
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if number % 2:
            start, before = time.monotonic(), set(self.folder.glob('Tiny_params_*'))
            while (running.poll() is None and time.monotonic() - start < 60
                   and set(self.folder.glob('Tiny_params_*')) <= before):
                time.sleep(0.01)
            time.sleep(self.rng.uniform(0, 1))
        else:
            time.sleep(self.rng.uniform(0, 8))
        running.send_signal(signal.SIGKILL)
        stderr = running.communicate()[1].decode()
        if running.returncode != -signal.SIGKILL:
            self.failed += 1
            print(f'kill {number}: ended, exit code {running.returncode}: {stderr[-500:]}')

    def inspect(self, number: int) -> None:
        """Count damaged checkpoints, and iterations that are logged but not saved."""
        for path in [*checkpoints.numbered(self.folder, 'Tiny'), *self.folder.glob('best.pt')]:
            try:
                checkpoints.read(path)
            except Exception as error:
                self.damaged += 1
                print(f'kill {number}: {error}')
        if (saved := newest(self.folder)) < self.reached:
            self.failed += 1
            print(f'kill {number}: from iteration {self.reached} back to {saved}')
        self.reached = saved
        if logged := curves.read(self.losses):
            lost = max(0, int(logged['iteration'][-1]) - saved)
            self.lost += lost
            self.most_lost = max(self.most_lost, lost)


def kill(options: argparse.Namespace) -> int:
    """Print what was lost; exit code 1 where files were damaged or a resume failed."""
    with tempfile.TemporaryDirectory() as root:
        paths = make_paths(Path(root))
        test, data = KillTest(paths, random.Random(options.seed)), contents(paths.data)
        for number in range(options.kills):
            test.start_and_kill(number)
            test.inspect(number)
        if contents(paths.data) != data:
            test.damaged += 1
            print('a file of the data set changed')
        leftovers = list(paths.results.rglob('.*'))
        print(f'{options.kills} kills, iteration {test.reached} reached: {test.damaged} files '
              f'damaged, {test.failed} resumes failed; iterations in losses.csv that were computed '
              f'again: {test.lost}, at most {test.most_lost} at a time; left half-written by the '
              f'last kill: {len(leftovers)}')
        return 1 if test.damaged or test.failed else 0


def watch(running: subprocess.Popen, folder: Path, results: Path) -> dict[int, float]:
    """Print the usage of a run at every 500th iteration until it ends; memory by iteration, MB."""
    memory = {}
    while running.poll() is None:
        iteration = newest(folder)
        if iteration and iteration % 500 == 0 and iteration not in memory:
            try:
                memory[iteration] = resident_memory(running.pid)
                files, threads = (len(os.listdir(f'/proc/{running.pid}/{kind}'))
                                  for kind in ('fd', 'task'))
            except OSError:
                break
            written = contents(results).values()
            print(f'iteration {iteration}: {memory[iteration]:.0f} MB, {files} open files, '
                  f'{threads} threads, {sum(map(len, written)) / 1e6:.1f} MB of results in '
                  f'{len(written)} files', flush=True)
        time.sleep(0.02)
    return memory


def long(options: argparse.Namespace) -> int:
    """Print memory, files and threads on the way; exit code 1 where memory grows by over 3 %."""
    with tempfile.TemporaryDirectory() as root:
        paths = make_paths(Path(root))
        stage = STAGE_1 if options.stage == 1 else ['--stage', options.stage]
        if options.stage == 2:
            subprocess.run(command(paths, *STAGE_1, '--iteration', 1), check=True)
        flags = '--iteration', options.iterations, '--save_freq', 100, '--print_freq', 10
        running = subprocess.Popen(command(paths, *stage, *flags), stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        memory = watch(running, paths.results / 'Tiny' / f'model{options.stage}', paths.results)
        if not memory:
            print(f'exit code {running.returncode}; no 500th iteration was seen')
            return 1
        growth = memory[max(memory)] / memory[min(memory)] - 1
        print(f'exit code {running.returncode}; memory grew by {100 * growth:.1f} % from iteration '
              f'{min(memory)} to {max(memory)}')
        return 1 if growth > 0.03 or running.returncode else 0


def disk(options: argparse.Namespace) -> int:
    """Train on a small file system until it is full, make room, and go on."""
    with tempfile.TemporaryDirectory() as root:
        paths = make_paths(Path(root))
        paths.results.mkdir()
        subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={options.megabytes}m', 'tmpfs',
                        str(paths.results)], check=True)
        try:
            arguments = [*STAGE_1, '--iteration', 40, '--save_freq', 1, '--print_freq', 1000]
            filler, folder = paths.results / 'filler', paths.results / 'Tiny' / 'model1'
            running = subprocess.Popen(command(paths, *arguments), stdout=subprocess.DEVNULL,
                                       stderr=subprocess.PIPE, text=True)
            while not list(folder.glob('best.pt')) and running.poll() is None:
                time.sleep(0.05)
            with suppress(OSError):
                filler.write_bytes(b'0' * options.megabytes * 2 ** 20)
            stderr = running.communicate()[1]
            paths_left = [*checkpoints.numbered(folder, 'Tiny'), folder / 'best.pt']
            print(f'exit code {running.returncode}; last line: {stderr.strip().splitlines()[-1]}\n'
                  f'traceback: {"Traceback" in stderr}\nwhole checkpoints of iterations '
                  f'{[checkpoints.read(path).iteration for path in paths_left]}')
            filler.unlink()
            resumed = subprocess.run(command(paths, *arguments, '--resume', 'True'),
                                     capture_output=True, text=True)
            print(f'with room again: exit code {resumed.returncode}; '
                  f'{resumed.stdout.strip().splitlines()[-1]}')
            return 0 if (running.returncode, resumed.returncode) == (1, 0) else 1
        finally:
            subprocess.run(['umount', str(paths.results)], check=True)


if __name__ == '__main__':
    parser = parser_of(__doc__)
    parser.add_argument('what', choices=['kill', 'long', 'disk'])
    for name, default in (('kills', 200), ('seed', 0), ('iterations', 5000), ('megabytes', 12)):
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--stage', type=int, default=1, choices=[0, 1, 2])
    chosen = parser.parse_args()
    sys.exit({'kill': kill, 'long': long, 'disk': disk}[chosen.what](chosen))
