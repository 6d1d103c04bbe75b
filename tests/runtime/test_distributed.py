"""Several processes compute what one does: torchrun with two on the CPU."""
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

from helpers import PROJECT, STAGE_1, TINY_FLAGS, Places, draw_data_set, read_csv, same

GENERATIONS = ('first', 'second')
TRAININGS = 5  # by two processes

# Runs main.py with each command line of a JSON file until one fails, since starting processes takes
# seconds, and keeps the networks of this process after a training as <number of the line>_<rank>.pt
# beside it. The prefix hides addresses of the line before. Curves take long, and have own tests.
DRIVER = f'''
import json, os, sys
sys.path.insert(0, {str(PROJECT)!r})

def run():
    import inference.model_selection, main, torch, trainer
    import torch.distributed as dist
    from concurrent.futures import ThreadPoolExecutor
    from reporting import curves

    rank, world_size = (int(os.environ[name]) for name in ('RANK', 'WORLD_SIZE'))
    server = dist.TCPStore(os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']))
    train, init = trainer.Trainer.train, dist.init_process_group

    def train_and_keep(self, *arguments):
        train(self, *arguments)
        torch.save(self.stage.networks.state_dict(), f'{{number}}_{{rank}}.pt')
    def init_anew(backend):
        store = dist.PrefixStore(f'line {{number}}', server)
        init(backend, store=store, rank=rank, world_size=world_size)
    trainer.Trainer.train, dist.init_process_group = train_and_keep, init_anew
    curves.draw = lambda folder: None
    inference.model_selection.worker_pool = ThreadPoolExecutor
    for number, line in enumerate(json.load(open('lines.json'))):
        sys.argv = ['main.py', *line]
        if code := main.main():
            sys.exit(code)

if __name__ == '__main__':  # not in its worker processes
    run()
'''


def launch(folder, *lines):
    """The driver under torchrun with these (places, command line), begun and not waited for."""
    (folder / 'lines.json').write_text(json.dumps(
        [[str(text) for text in (*places.flags, *line)] for places, line in lines]))
    (folder / 'driver.py').write_text(DRIVER)
    return subprocess.Popen(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2',
         'driver.py'], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'})


def losses(places, stage):
    return [{name: float(value) for name, value in row.items()}
            for row in read_csv(places.results / f'log{stage}' / 'losses.csv')]


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """The same runs by one process and by two: stage 1 of both generations, one iteration, then
    from there one more by the other number of processes; stage 2 from one teacher; val and test of
    the student that one process trained. At last a batch that two processes cannot share."""
    root = tmp_path_factory.mktemp('distributed')
    data_root = draw_data_set(root / 'data')
    single, double = ({name: Places(data_root, root / number / name)
                       for name in (*GENERATIONS, 'student', 'test')}
                      for number in ('one', 'two'))
    stage_1 = {name: [*TINY_FLAGS, *STAGE_1, '--batch_size', 2, '--generation', name,
                      '--iteration'] for name in GENERATIONS}
    resume = [2, '--resume', 'True']
    for name in GENERATIONS:
        single[name].done(*stage_1[name], 1)
    teacher = shutil.copy(single['first'].results / 'model1' / 'Tiny_params_0000001.pt', root)
    student = ['--stage', 2, '--teacher', teacher, '--iteration', 3, '--ch', 4]
    single['student'].done(*student)
    for places in (single['test'], double['test']):  # val writes beside its checkpoint
        shutil.copytree(single['student'].results / 'model2', places.results / 'model2')
    score = [['--stage', 2, '--teacher', teacher, '--phase', *phase]
             for phase in (['val'], ['test', '--postprocess', 'crf'])]
    lines = [(double[name], [*stage_1[name], 1]) for name in GENERATIONS]
    lines += [(single[name], [*stage_1[name], *resume]) for name in GENERATIONS]
    lines += [(double['student'], student), *((double['test'], line) for line in score)]
    lines += [(Places(data_root, root / 'uneven'), [*TINY_FLAGS, *STAGE_1, '--batch_size', 3])]
    running = launch(root, *lines)
    try:
        stdout, stderr = running.communicate(timeout=600)
    finally:
        running.kill()
    assert len(list(root.glob('?_?.pt'))) == 2 * TRAININGS, stderr
    for name in GENERATIONS:
        double[name].done(*stage_1[name], *resume)
    for line in score:
        single['test'].done(*line)
    return SimpleNamespace(root=root, single=single, double=double, returncode=running.returncode,
                           stdout=stdout, stderr=stderr)


@pytest.mark.parametrize('generation', GENERATIONS)
def test_stage_1_and_resuming_with_another_number(runs, generation):
    places = [runs.single[generation], runs.double[generation]]
    one, two = (losses(of_number, 1) for of_number in places)
    assert len(one) == len(two) == 2 and one[0] == pytest.approx(two[0], rel=1e-4, abs=1e-6)
    # a step of Adam is ±lr whatever small gradient it had, so that rounding may change a few
    assert one[1] == pytest.approx(two[1], rel=2e-3, abs=1e-6)
    files = [{path.relative_to(of_number.results) for path in of_number.results.rglob('*.p*')}
             for of_number in places]
    assert files[0] == files[1]


def test_all_processes_end_with_equal_networks(runs):
    """To the bit, so that the main process may save for all."""
    for line in range(TRAININGS):
        first, second = (torch.load(runs.root / f'{line}_{rank}.pt') for rank in range(2))
        assert first and same(first, second)


def test_stage_2(runs):
    one, two = (losses(places['student'], 2) for places in (runs.single, runs.double))
    assert len(one) == 3
    for row_of_one, row_of_two in zip(one, two, strict=True):
        assert row_of_one == pytest.approx(row_of_two, rel=2e-3, abs=1e-6)


def test_val_and_test_are_equal_to_the_last_digit(runs):
    contents = []
    for results in (runs.single['test'].results, runs.double['test'].results):
        texts = [(results / name).read_text().replace(str(results), '')
                 for name in ('model2/val.json', 'test2/best/metrics.json')]
        images = {str(path.relative_to(results)): path.read_bytes()
                  for path in (results / 'test2').rglob('*.png')}
        contents.append(([json.loads(text) for text in texts], images))
    assert contents[0] == contents[1] and any('overlay' in name for name in contents[0][1])


def test_the_main_process_alone_prints_and_refuses_what_cannot_be_shared(runs):
    counts = [runs.stdout.count(f'finished at iteration {number}') for number in (1, 2, 3)]
    assert counts == [2, 2, 1]
    errors = [line for line in runs.stderr.splitlines() if line.startswith('error: ')]
    assert runs.returncode != 0 and len(errors) == 1
    assert '--batch_size 3' in errors[0] and 'multiple' in errors[0]
    assert not list((runs.root / 'uneven').rglob('model1/*'))


@pytest.mark.parametrize('name, reason', [('SIGTERM', 'SIGTERM'),  # forwarded, as SIGINT is
                                          ('SIGUSR1', 'torchrun has ended')])  # not forwarded
def test_a_signal_to_torchrun_saves_in_order(name, reason, places, tmp_path):
    flags = [*TINY_FLAGS, *STAGE_1, '--batch_size', 2, '--print_freq', 1, '--save_freq', 10 ** 6]
    running = launch(tmp_path, (places, [*flags, '--iteration', 10 ** 6]))
    first_grid = places.results / 'img1' / 'A2B_0000001.png'
    try:
        deadline = time.monotonic() + 280
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
