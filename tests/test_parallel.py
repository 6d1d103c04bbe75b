"""Several processes compute what one does: torchrun with two on the CPU."""
import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from conftest import PROJECT, STAGE_1, TINY_FLAGS, command, same

PROCESSES = 2


def launch(*arguments, cwd):
    """torchrun with the program, begun and not waited for."""
    return subprocess.Popen(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node',
         str(PROCESSES), str(PROJECT / 'main.py'), *map(str, arguments)],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'})


def torchrun(*arguments, cwd):
    running = launch(*arguments, cwd=cwd)
    try:
        out, err = running.communicate(timeout=300)
    finally:
        running.kill()
    return subprocess.CompletedProcess(running.args, running.returncode, out, err)


def losses(folder, stage):
    with open(folder / 'Tiny' / f'log{stage}' / 'losses.csv', newline='') as file:
        return [{name: float(value) for name, value in row.items()}
                for row in csv.DictReader(file)]


def assert_close(one, other, tolerance=1e-4):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name] == pytest.approx(other[name], rel=tolerance, abs=1e-6), name


@pytest.mark.parametrize('generation', ['first', 'second'])
def test_stage_1_and_resuming_with_another_number(generation, data_root, tmp_path):
    flags = ['--data_root', data_root, '--dataset', 'Tiny', *TINY_FLAGS, *STAGE_1, '--batch_size', 2,
             '--print_freq', 1, '--generation', generation]
    for run, folder in ((command, 'one'), (torchrun, 'two')):
        made = run(*flags, '--iteration', 1, '--result_dir', tmp_path / folder, cwd=tmp_path)
        assert made.returncode == 0, made.stderr
        assert made.stdout.count('finished at iteration 1') == 1  # the first process alone speaks
    assert_close(losses(tmp_path / 'one', 1)[0], losses(tmp_path / 'two', 1)[0])
    files = [sorted(str(path.relative_to(tmp_path / folder)) for path in
                    (tmp_path / folder).rglob('*.p*') if path.is_file()) for folder in ('one', 'two')]
    assert files[0] == files[1]

    # on from there, each with the other number of processes: again the same step
    for run, folder in ((command, 'two'), (torchrun, 'one')):
        made = run(*flags, '--iteration', 2, '--result_dir', tmp_path / folder, '--resume', 'True',
                   cwd=tmp_path)
        assert made.returncode == 0, made.stderr
    # a step of Adam is ±lr whatever small gradient it had, so that rounding may turn a few
    one, two = (losses(tmp_path / folder, 1) for folder in ('one', 'two'))
    assert len(one) == len(two) == 2
    assert_close(one[1], two[1], tolerance=2e-3)


def test_stage_2_val_and_test(data_root, tmp_path):
    common = ['--data_root', data_root, '--dataset', 'Tiny', '--device', 'cpu']
    trained = command(*common, *TINY_FLAGS, *STAGE_1, '--batch_size', 2, '--iteration', 1,
                      '--result_dir', tmp_path / 'one')
    assert trained.returncode == 0, trained.stderr
    teacher = next((tmp_path / 'one' / 'Tiny' / 'model1').glob('*.pt'))
    student = ['--stage', 2, '--teacher', teacher, '--iteration', 3, '--warm_up', 1,
               '--renew_freq', 1, '--guard', 0, '--confidence', 0.1, '--ch', 4]
    for run, folder in ((command, 'one'), (torchrun, 'two')):
        made = run(*common, '--result_dir', tmp_path / folder, '--phase', 'train', *student,
                   cwd=tmp_path)
        assert made.returncode == 0, made.stderr
    for one, two in zip(losses(tmp_path / 'one', 2), losses(tmp_path / 'two', 2)):
        assert_close(one, two, tolerance=2e-3)

    # val and test of one checkpoint are equal to the last digit
    best = tmp_path / 'one' / 'Tiny' / 'model2' / 'best.pt'
    for run in (command, torchrun):
        name = run.__name__
        for phase in (['--phase', 'val', '--checkpoint', best],
                      ['--phase', 'test', '--checkpoint', best, '--postprocess', 'crf',
                       '--result_dir', tmp_path / name]):
            made = run(*common, *phase, '--stage', 2, '--teacher', teacher, cwd=tmp_path)
            assert made.returncode == 0, made.stderr
        (best.parent / 'val.json').rename(tmp_path / f'{name}.json')
    results = [tmp_path / run.__name__ / 'Tiny' / 'test2' / 'best' for run in (command, torchrun)]
    for one, two in ([tmp_path / f'{run.__name__}.json' for run in (command, torchrun)],
                     [folder / 'metrics.json' for folder in results]):
        assert json.loads(one.read_text()) == json.loads(two.read_text())
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob('*.png'))
             for folder in results]
    assert names[0] == names[1] and any('overlay' in name for name in names[0])
    for name in names[0]:
        assert (results[0] / name).read_bytes() == (results[1] / name).read_bytes(), name


def test_a_batch_that_cannot_be_dealt_out(data_root, tmp_path):
    made = torchrun('--data_root', data_root, '--dataset', 'Tiny', *TINY_FLAGS, *STAGE_1, '--batch_size', 3,
                    '--result_dir', tmp_path / 'results', cwd=tmp_path)
    lines = [line for line in made.stderr.splitlines() if line.startswith('error: ')]
    assert made.returncode != 0 and len(lines) == 1
    assert '--batch_size 3' in lines[0] and 'multiple' in lines[0]
    assert not (tmp_path / 'results' / 'Tiny' / 'model1').exists() or not any(
        (tmp_path / 'results' / 'Tiny' / 'model1').iterdir())


def test_ranks_end_with_equal_networks(data_root, tmp_path):
    """What the processes would save is equal to the bit, so that the first may save for all."""
    script = tmp_path / 'all_save.py'
    script.write_text(
        'import sys, runpy\n'
        f'sys.path.insert(0, {str(PROJECT)!r})\n'
        'import parallel, checkpoint\n'
        'from pathlib import Path\n'
        'import torch, trainer\n'
        'old = trainer.Trainer._score_and_save\n'
        'def save(self, folder, *rest):\n'
        '    torch.save(self.learner.networks.state_dict(), folder / f"of_{parallel.number()}")\n'
        '    old(self, folder, *rest)\n'
        'trainer.Trainer._score_and_save = save\n'
        f'runpy.run_path({str(PROJECT / "main.py")!r}, run_name="__main__")\n')
    made = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2',
         str(script), '--data_root', str(data_root), '--dataset', 'Tiny', *TINY_FLAGS, *STAGE_1,
         '--batch_size', '2', '--iteration', '3', '--result_dir', str(tmp_path / 'results')],
        capture_output=True, text=True, timeout=300, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert made.returncode == 0, made.stderr
    states = [torch.load(tmp_path / 'results' / 'Tiny' / 'model1' / f'of_{number}',
                         weights_only=True) for number in range(2)]
    assert same(*states)


@pytest.mark.parametrize('name, reason', [('SIGTERM', 'SIGTERM'),  # handed on, as SIGINT is
                                          ('SIGUSR1', 'torchrun has ended')])  # not handed on
def test_a_signal_to_torchrun_saves_in_order(name, reason, data_root, tmp_path):
    flags = ['--data_root', data_root, '--dataset', 'Tiny', *TINY_FLAGS, *STAGE_1, '--batch_size', 2,
             '--print_freq', 10 ** 6, '--save_freq', 10 ** 6, '--result_dir', tmp_path / 'results']
    running = launch(*flags, '--iteration', 10 ** 6, cwd=tmp_path)
    log = tmp_path / 'results' / 'Tiny' / 'log1' / 'losses.csv'
    try:
        until = time.monotonic() + 120
        while not log.is_file() and running.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(2)  # some iterations; the log is not flushed before a checkpoint
        running.send_signal(getattr(signal, name))
        _, said = running.communicate(timeout=120)
    finally:
        running.kill()
    assert f'{reason}: finishing this iteration' in said and '--resume True goes on from it' in said
    saved, = (tmp_path / 'results' / 'Tiny' / 'model1').glob('Tiny_params_*.pt')
    reached = int(saved.stem[-7:])
    assert reached >= 1
    again = command(*flags, '--iteration', reached + 1, '--resume', 'True', cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert len(losses(tmp_path / 'results', 1)) == reached + 1
