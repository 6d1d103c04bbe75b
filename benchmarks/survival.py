"""Runs that are killed over and over, and a long run: what is lost, and whether memory stays flat.

    python benchmarks/survival.py kill [--kills 200] [--seed 0]
    python benchmarks/survival.py long [--iterations 5000] [--stage 1]
    python benchmarks/survival.py disk [--megabytes 12]

kill: a run that saves after every iteration is ended with SIGKILL at random moments and resumed; every
    file that is there afterwards has to be whole, and iterations may only be lost since the last
    checkpoint.
long: memory, files and threads of a run, after its warm-up and at its end.
disk: a run on a file system of that size (needs root, Linux): the disk fills up, the run ends in
    order, and goes on when there is room.
"""
import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / 'tests')]
import checkpoint as checkpoints  # noqa: E402
from conftest import STAGE_1, TINY_FLAGS  # noqa: E402
from fuzz import make_places  # noqa: E402


def command(places, *arguments):
    return [sys.executable, str(PROJECT / 'main.py'), '--phase', 'train', '--dataset', 'Tiny',
            '--data_root', str(places['data']), '--result_dir', str(places['results']),
            *TINY_FLAGS, '--batch_size', '1', *map(str, arguments)]


def contents(folder):
    """Every file below a folder with its bytes."""
    return {path: path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def kill(options):
    """The table's row: kills, damaged files, resumes that failed, iterations lost."""
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as root:
        places = make_places(Path(root))
        folder = places['results'] / 'Tiny' / 'model1'
        losses = places['results'] / 'Tiny' / 'log1' / 'losses.csv'
        data = contents(places['data'])
        damaged = failed = lost = most_lost = reached = 0
        for number in range(options.kills):
            running = subprocess.Popen(
                command(places, *STAGE_1, '--iteration', 10 ** 6, '--save_freq', 1, '--print_freq',
                        7, '--resume', 'True'),
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            # half of the kills while it starts, half while it saves
            begun = time.monotonic()
            if number % 2:
                before = {path.name for path in folder.glob('Tiny_params_*')}
                while (running.poll() is None and time.monotonic() - begun < 60
                       and {path.name for path in folder.glob('Tiny_params_*')} <= before):
                    time.sleep(0.01)
                time.sleep(rng.uniform(0, 1))
            else:
                time.sleep(rng.uniform(0, 8))
            running.send_signal(signal.SIGKILL)
            said = running.communicate()[1].decode()
            if running.returncode != -signal.SIGKILL:
                failed += 1
                print(f'kill {number}: ended by itself, exit code {running.returncode}: {said[-500:]}')
            found = checkpoints.numbered(folder, 'Tiny') if folder.is_dir() else []
            for path in [*found, *folder.glob('best.pt')]:
                try:
                    checkpoints.read(path)
                except Exception as error:
                    damaged += 1
                    print(f'kill {number}: {error}')
            newest = int(found[-1].stem[-7:]) if found else 0
            if newest < reached:
                failed += 1
                print(f'kill {number}: from iteration {reached} back to {newest}')
            reached = newest
            if losses.is_file():
                with open(losses, newline='') as file:
                    rows = [row for row in csv.reader(file)][1:]
                done = int(rows[-1][0]) if rows and rows[-1] and rows[-1][0].isdigit() else 0
                lost += max(0, done - newest)
                most_lost = max(most_lost, done - newest)
        if contents(places['data']) != data:
            damaged += 1
            print('a file of the data set changed')
        leftovers = [path for path in places['results'].rglob('.*')]
        print(f'{options.kills} kills, iteration {reached} reached: {damaged} files damaged, {failed} '
              f'resumes failed; iterations seen in losses.csv and done again: {lost}, at most '
              f'{most_lost} at a time; left half-written by the last kill: {len(leftovers)}')
        return 1 if damaged or failed else 0


def usage(process):
    """Resident memory in MB, open files and threads of a process."""
    folder = Path('/proc') / str(process)
    pages = int((folder / 'statm').read_text().split()[1])
    return (pages * os.sysconf('SC_PAGE_SIZE') / 1e6, len(list((folder / 'fd').iterdir())),
            len(list((folder / 'task').iterdir())))


def long(options):
    """Print memory, files and threads on the way; exit code 1 where memory grows by over 3 %."""
    with tempfile.TemporaryDirectory() as root:
        places = make_places(Path(root))
        stage = [*STAGE_1] if options.stage == 1 else ['--stage', options.stage]
        if options.stage == 2:
            subprocess.run(command(places, *STAGE_1, '--iteration', 1), check=True)
        running = subprocess.Popen(
            command(places, *stage, '--iteration', options.iterations, '--save_freq', 100,
                    '--print_freq', 10), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        folder = places['results'] / 'Tiny' / f'model{options.stage}'
        seen = {}
        while running.poll() is None:
            found = checkpoints.numbered(folder, 'Tiny') if folder.is_dir() else []
            iteration = int(found[-1].stem[-7:]) if found else 0
            if iteration and iteration % 500 == 0 and iteration not in seen:
                try:
                    seen[iteration] = usage(running.pid)
                except OSError:
                    break
                print(f'iteration {iteration}: {seen[iteration][0]:.0f} MB, {seen[iteration][1]} '
                      f'open files, {seen[iteration][2]} threads, '
                      f'{sum(map(len, contents(places["results"]).values())) / 1e6:.1f} MB of results '
                      f'in {len(contents(places["results"]))} files', flush=True)
            time.sleep(0.02)
        first, last = seen[min(seen)], seen[max(seen)]
        growth = last[0] / first[0] - 1
        print(f'exit code {running.returncode}; memory grew by {100 * growth:.1f} % from iteration '
              f'{min(seen)} to {max(seen)}')
        return 1 if growth > 0.03 or running.returncode else 0


def disk(options):
    """Train on a small file system until it is full, make room, and go on."""
    with tempfile.TemporaryDirectory() as root:
        places = make_places(Path(root))
        places['results'].mkdir()
        subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={options.megabytes}m', 'tmpfs',
                        str(places['results'])], check=True)
        try:
            arguments = [*STAGE_1, '--iteration', 40, '--save_freq', 1, '--print_freq', 1000]
            filler = places['results'] / 'filler'
            running = subprocess.Popen(command(places, *arguments), stdout=subprocess.DEVNULL,
                                       stderr=subprocess.PIPE, text=True)
            folder = places['results'] / 'Tiny' / 'model1'
            while not list(folder.glob('best.pt')) and running.poll() is None:
                time.sleep(0.05)
            try:
                filler.write_bytes(b'0' * options.megabytes * 2 ** 20)
            except OSError:
                pass
            said = running.communicate()[1]
            print(f'exit code {running.returncode}; last line: '
                  f'{said.strip().splitlines()[-1]}\ntraceback: {"Traceback" in said}')
            whole = [checkpoints.read(path).iteration
                     for path in [*checkpoints.numbered(folder, 'Tiny'), folder / 'best.pt']]
            print(f'whole checkpoints of iterations {whole}')
            filler.unlink()
            again = subprocess.run(command(places, *arguments, '--resume', 'True'),
                                   capture_output=True, text=True)
            print(f'with room again: exit code {again.returncode}; '
                  f'{again.stdout.strip().splitlines()[-1]}')
            return 0 if (running.returncode, again.returncode) == (1, 0) else 1
        finally:
            subprocess.run(['umount', str(places['results'])], check=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=['kill', 'long', 'disk'])
    parser.add_argument('--kills', type=int, default=200)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--iterations', type=int, default=5000)
    parser.add_argument('--stage', type=int, default=1, choices=[0, 1, 2])
    parser.add_argument('--megabytes', type=int, default=12)
    chosen = parser.parse_args()
    sys.exit({'kill': kill, 'long': long, 'disk': disk}[chosen.what](chosen))
