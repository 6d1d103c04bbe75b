"""Several processes compute what one does: torchrun with two on the CPU.

Processes take seconds to start, so one torchrun goes through most command lines (`DRIVER`).
"""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from helpers import PROJECT, STAGE_1, TINY_FLAGS, Places, draw_data_set, names, read_csv, same

PROCESSES = 2
GENERATIONS = ('first', 'second')

# Runs main.py with each command line of a JSON file until one fails, and keeps the networks that
# this process has after a training as <number of the line>_<rank>.pt. The processes find each other
# anew for each line: the prefix hides the addresses of the line before.
DRIVER = f'''
import json, os, sys
sys.path.insert(0, {str(PROJECT)!r})
import torch
import torch.distributed as dist
import main, trainer
from reporting import curves

def run(lines, folder):
    rank, world_size = (int(os.environ[name]) for name in ('RANK', 'WORLD_SIZE'))
    server = dist.TCPStore(os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']),
                           is_master=False)
    train, init = trainer.Trainer.train, dist.init_process_group

    def train_and_keep(self, *arguments):
        train(self, *arguments)
        torch.save(self.stage.networks.state_dict(), f'{{folder}}/{{number}}_{{rank}}.pt')

    def init_anew(backend):
        init(backend, store=dist.PrefixStore(f'line {{number}}', server), rank=rank,
             world_size=world_size)

    trainer.Trainer.train, dist.init_process_group = train_and_keep, init_anew
    curves.draw = lambda folder: None  # takes long, and has its own tests
    for number, line in enumerate(json.load(open(lines))):
        sys.argv = ['main.py', *line]
        if code := main.main():
            sys.exit(code)

if __name__ == '__main__':  # not in its worker processes
    run(*sys.argv[1:])
'''


def launch(script, *arguments):
    """A script under torchrun, begun and not waited for."""
    return subprocess.Popen(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node',
         str(PROCESSES), str(script), *map(str, arguments)],
        cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'})


def assert_close(one, other, tolerance):
    assert one.keys() == other.keys()
    for name in one:
        assert float(one[name]) == pytest.approx(float(other[name]), rel=tolerance, abs=1e-6), name


def losses(places, stage):
    return read_csv(places.results / f'log{stage}' / 'losses.csv')


# ------------------------------------------------------------------------------- the same results


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('reporting.curves.draw', lambda folder: None)  # as in DRIVER
        return run_all(tmp_path_factory.mktemp('distributed'))


def run_all(root):
    """The same runs by one process and by two.

    Stage 1 of both generations: one iteration, then from there two more by the other number of
    processes. Stage 2 from one teacher; val and test of the student that one process trained. At
    last a batch that two processes cannot share.
    """
    data_root = draw_data_set(root / 'data')
    single, double = ({name: Places(data_root, root / number / name)
                       for name in (*GENERATIONS, 'student', 'test')}
                      for number in ('one', 'two'))
    for places in (single['test'], double['test']):  # their val would write into one folder
        (places.results / 'model2').mkdir(parents=True)

    stage_1 = {name: [*TINY_FLAGS, *STAGE_1, '--batch_size', 2, '--generation', name,
                      '--iteration'] for name in GENERATIONS}
    resume = [3, '--resume', 'True']
    for name in GENERATIONS:
        single[name].done(*stage_1[name], 1)
    teacher = shutil.copy(single['first'].results / 'model1' / 'Tiny_params_0000001.pt', root)
    student = ['--stage', 2, '--teacher', teacher, '--iteration', 3, '--warm_up', 1,
               '--target_update_freq', 1, '--min_teacher_iou', 0, '--ch', 4]
    single['student'].done(*student)
    for places in (single['test'], double['test']):
        shutil.copy(single['student'].results / 'model2' / 'best.pt', places.results / 'model2')

    def score(places):
        best = ['--stage', 2, '--teacher', teacher, '--checkpoint',
                places.results / 'model2' / 'best.pt']
        return [['--phase', 'val', *best], ['--phase', 'test', *best, '--postprocess', 'crf']]

    lines = [(double[name], [*stage_1[name], 1]) for name in GENERATIONS]
    lines += [(single[name], [*stage_1[name], *resume]) for name in GENERATIONS]
    lines += [(double['student'], student)]
    lines += [(double['test'], line) for line in score(double['test'])]
    lines += [(Places(data_root, root / 'uneven'), [*TINY_FLAGS, *STAGE_1, '--batch_size', 3])]
    (root / 'lines.json').write_text(json.dumps(
        [[str(text) for text in (*places.flags, *line)] for places, line in lines]))
    (root / 'driver.py').write_text(DRIVER)
    (root / 'networks').mkdir()
    running = launch(root / 'driver.py', root / 'lines.json', root / 'networks')
    try:
        stdout, stderr = running.communicate(timeout=600)
    finally:
        running.kill()
    assert len(names(root / 'networks')) == 5 * PROCESSES, stderr  # all trainings ended
    for name in GENERATIONS:
        double[name].done(*stage_1[name], *resume)
    for line in score(single['test']):
        single['test'].done(*line)
    return SimpleNamespace(root=root, single=single, double=double, returncode=running.returncode,
                           stdout=stdout, stderr=stderr)


@pytest.mark.parametrize('generation', GENERATIONS)
def test_stage_1_and_resuming_with_another_number(runs, generation):
    one, two = (losses(places[generation], 1) for places in (runs.single, runs.double))
    assert [row['iteration'] for row in one] == [row['iteration'] for row in two] == ['1', '2', '3']
    assert_close(one[0], two[0], tolerance=1e-4)
    # a step of Adam is ±lr whatever small gradient it had, so that rounding may change a few
    assert_close(one[1], two[1], tolerance=2e-3)
    files = [sorted(str(path.relative_to(places[generation].results))
                    for path in places[generation].results.rglob('*.p*') if path.is_file())
             for places in (runs.single, runs.double)]
    assert files[0] == files[1]


def test_the_main_process_alone_prints(runs):
    assert runs.stdout.count('finished at iteration 1') == len(GENERATIONS)
    assert runs.stdout.count('finished at iteration 3') == len(GENERATIONS) + 1


@pytest.mark.parametrize('line', range(5))
def test_all_processes_end_with_equal_networks(runs, line):
    """To the bit, so that the main process may save for all."""
    states = [torch.load(runs.root / 'networks' / f'{line}_{rank}.pt', weights_only=True)
              for rank in range(PROCESSES)]
    assert states[0] and same(*states)


def test_stage_2(runs):
    one, two = (losses(places['student'], 2) for places in (runs.single, runs.double))
    assert len(one) == len(two) == 3
    for row_of_one, row_of_two in zip(one, two, strict=True):
        assert_close(row_of_one, row_of_two, tolerance=2e-3)


def test_val_and_test_are_equal_to_the_last_digit(runs):
    one, two = runs.single['test'].results, runs.double['test'].results
    for name in ('model2/val.json', 'test2/best/metrics.json'):
        texts = [(results / name).read_text().replace(str(results), '') for results in (one, two)]
        assert json.loads(texts[0]) == json.loads(texts[1])
    images = [sorted(str(path.relative_to(results)) for path in results.rglob('test2/**/*.png'))
              for results in (one, two)]
    assert images[0] == images[1] and any('overlay' in name for name in images[0])
    for name in images[0]:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_a_batch_that_cannot_be_shared(runs):
    errors = [line for line in runs.stderr.splitlines() if line.startswith('error: ')]
    assert runs.returncode != 0 and len(errors) == 1
    assert '--batch_size 3' in errors[0] and 'multiple' in errors[0]
    folder = runs.root / 'uneven' / 'results' / 'Tiny' / 'model1'
    assert not folder.exists() or not names(folder)


# ------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize('name, reason', [('SIGTERM', 'SIGTERM'),  # forwarded, as SIGINT is
                                          ('SIGUSR1', 'torchrun has ended')])  # not forwarded
def test_a_signal_to_torchrun_saves_in_order(name, reason, places):
    flags = [*TINY_FLAGS, *STAGE_1, '--batch_size', 2, '--print_freq', 1, '--save_freq', 10 ** 6]
    running = launch(PROJECT / 'main.py', *places.flags, *flags, '--iteration', 10 ** 6)
    first_grid = places.results / 'img1' / 'A2B_0000001.png'
    try:
        deadline = time.monotonic() + 120
        while not first_grid.is_file():  # the first iteration is done
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        running.send_signal(getattr(signal, name))
        _, stderr = running.communicate(timeout=120)
    finally:
        running.kill()
    assert f'{reason}: finishing this iteration' in stderr
    assert '--resume True goes on from it' in stderr
    saved, = (places.results / 'model1').glob('Tiny_params_*.pt')
    reached = int(saved.stem[-7:])
    assert reached >= 1
    places.done(*flags, '--iteration', reached + 1, '--resume', 'True')
    assert len(losses(places, 1)) == reached + 1
