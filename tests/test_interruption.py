"""Runs that are stopped, killed, out of disk or out of numbers: nothing that was done is lost."""
import csv
import os
import resource
import signal
import subprocess
import sys
import time
from datetime import datetime
from unittest import mock

import pytest
import torch

import checkpoint as checkpoints
import locator
import losses
import steps
import student
from conftest import PROJECT, STAGE_1, TINY_FLAGS, Places, same
from label_transfer import LabelTransfer

RUN = ['--phase', 'train', *TINY_FLAGS, '--batch_size', 1, '--normal_batch', 1, '--print_freq', 100,
       '--save_freq', 100]
LEARNERS = {0: locator.Locating, 1: LabelTransfer, 2: student.Student}


@pytest.fixture
def places(data_root, tmp_path):
    return Places(data_root, tmp_path)


def at_iteration(learner, number, act):
    """A patch by which `act(values)` has the last word on what a learner's step at that iteration
    (or, with None, at each) gives."""
    step = learner.step

    def patched(self, batch, iteration):
        values = step(self, batch, iteration)
        if number in (None, iteration + 1):
            act(values)
        return values

    return mock.patch.object(learner, 'step', patched)


def send(name):
    return lambda values: os.kill(os.getpid(), getattr(signal, name))


def iterations(path):
    with open(path, newline='') as file:
        return [int(row['iteration']) for row in csv.DictReader(file)]


@pytest.mark.parametrize('stage, name, more', [
    (0, 'SIGTERM', []), (1, 'SIGINT', STAGE_1), (2, 'SIGUSR1', []),
    (2, 'SIGTERM', ['--student', 'locator', '--cut', 'True', '--margin', 2, '--fade', 'True'])])
def test_a_signal_saves_and_the_resumed_run_is_the_same_to_the_bit(places, stage, name, more):
    flags = [*RUN, '--iteration', 5, '--stage', stage, '--augment', 'True', *more]
    if stage == 2:
        before = ['--stage', 0] if 'locator' in more else STAGE_1
        places.done(*RUN, *before, '--iteration', 1)
        if 'locator' in more:
            flags += ['--teacher', places.results / 'model0' / 'best.pt']
    places.done(*flags)
    folder = places.results / f'model{stage}'
    last = folder / 'Tiny_params_0000005.pt'
    whole = torch.load(last, weights_only=True)

    with at_iteration(LEARNERS[stage], 2, send(name)):
        stopped = places.run(*flags)
    assert stopped.returncode == 0, stopped.stderr
    assert f'{name}: finishing this iteration' in stopped.stderr
    assert 'Tiny_params_0000002.pt is kept, and --resume True goes on from it' in stopped.stderr
    assert not last.exists() and checkpoints.read(folder / 'Tiny_params_0000002.pt').iteration == 2
    # any number of reading threads goes on the same way
    places.done('--phase', 'train', '--stage', stage, '--resume', 'True', '--num_workers', 2)
    again = torch.load(last, weights_only=True)
    for key in whole:
        assert same(whole[key], again[key]), key
    assert iterations(places.results / f'log{stage}' / 'losses.csv') == [1, 2, 3, 4, 5]


def test_a_stopped_run_of_all_stages_goes_on_where_it_was(places):
    flags = [*RUN, '--iteration', 3, '--location_weight', 5]
    with at_iteration(LabelTransfer, 1, send('SIGTERM')), \
            mock.patch.dict('settings.LOCATOR_DEFAULTS', iteration=2, batch_size=1), \
            mock.patch.dict('settings.STUDENT_DEFAULTS', iteration=2, batch_size=1):
        stopped = places.run(*flags)
        assert stopped.returncode == 0 and '--- stage 2' not in stopped.stdout
    with mock.patch.dict('settings.LOCATOR_DEFAULTS', iteration=2, batch_size=1), \
            mock.patch.dict('settings.STUDENT_DEFAULTS', iteration=2, batch_size=1):
        out = places.done(*flags, '--resume', 'True')
    assert '--- stage 0' not in out and '--- stage 2' in out
    assert iterations(places.results / 'log1' / 'losses.csv') == [1, 2, 3]


def test_a_second_sigint_leaves_at_once(places):
    def twice(values):
        send('SIGINT')(values)
        send('SIGINT')(values)

    with at_iteration(LabelTransfer, 3, twice):
        stopped = places.run(*RUN, *STAGE_1, '--iteration', 5, '--save_freq', 2)
    assert stopped.returncode == 130
    assert 'left at once; ' in stopped.stderr and 'Tiny_params_0000002.pt is kept' in stopped.stderr
    assert not (places.results / 'model1' / 'Tiny_params_0000003.pt').exists()


def start(places, *arguments, **options):
    return subprocess.Popen([sys.executable, str(PROJECT / 'main.py'),
                             *map(str, (*places.flags, *arguments))], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_killed_run_goes_on_from_its_last_whole_checkpoint(places):
    folder = places.results / 'model1'
    flags = [*RUN, *STAGE_1, '--iteration', 100000, '--save_freq', 1, '--resume', 'True']
    reached = 0
    for _ in range(2):
        running = start(places, *flags)
        wait_for(lambda: running.poll() is not None or [
            path for path in checkpoints.numbered(folder, 'Tiny')
            if int(path.stem[-7:]) > reached + 3])
        running.kill()
        _, said = running.communicate()
        assert running.returncode == -signal.SIGKILL, said
        found = checkpoints.numbered(folder, 'Tiny')
        reached = checkpoints.read(found[-1]).iteration
        assert all(checkpoints.read(path) for path in [*found, folder / 'best.pt'])
    (folder / '.Tiny_params_0000099.pt.tmp').write_bytes(b'half')
    places.done(*flags, '--iteration', reached + 1)
    assert iterations(places.results / 'log1' / 'losses.csv') == list(range(1, reached + 2))
    assert not list(folder.glob('.*'))


def test_a_full_disk_ends_the_run_and_leaves_the_checkpoint_before(places):
    flags = [*RUN, *STAGE_1, '--iteration', 4, '--save_freq', 2]
    save = torch.save

    def full(content, file):
        if content['iteration'] == 4:
            file.write(b'part of it')
            raise OSError(28, 'No space left on device')
        save(content, file)

    with mock.patch('torch.save', full):
        stopped = places.run(*flags)
    assert stopped.returncode == 1 and 'Traceback' not in stopped.stderr
    last = stopped.stderr.splitlines()[-1]
    assert 'Tiny_params_0000004.pt: cannot be written: No space left' in last
    assert 'Tiny_params_0000002.pt is kept' in last
    folder = places.results / 'model1'
    assert sorted(path.name for path in folder.iterdir()) == ['Tiny_params_0000002.pt', 'best.pt']
    assert 'finished at iteration 4' in places.done(*flags, '--resume', 'True')


def test_a_limit_that_torch_itself_runs_into(places):
    limit = 200_000  # bytes of a file: logs fit, a checkpoint does not
    running = start(places, *RUN, *STAGE_1, '--iteration', 1, '--pictures', 'False',
                    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    _, said = running.communicate(timeout=120)
    assert running.returncode == 1 and 'Traceback' not in said, said
    assert 'Tiny_params_0000001.pt: cannot be written' in said
    assert 'no checkpoint had been written yet' in said
    assert not list((places.results / 'model1').iterdir())


def break_once(name, number, value):
    """A patch that makes one loss function give `value` times its result, at its n-th call."""
    function, calls = getattr(losses, name), []

    def broken(*arguments, **keywords):
        calls.append(1)
        return function(*arguments, **keywords) * (value if len(calls) == number else 1)

    return mock.patch.object(losses, name, broken)


@pytest.mark.parametrize('stage, name', [(0, 'image_label'), (1, 'picture_distance'),
                                         (1, 'adversarial'), (2, 'dice')])
def test_a_loss_that_is_no_number_costs_one_step(places, stage, name):
    if stage == 2:
        places.done(*RUN, *STAGE_1, '--iteration', 1)
    recipe = STAGE_1 if stage == 1 else ['--stage', stage]
    with break_once(name, 3, float('nan')):
        ran = places.run(*RUN, *recipe, '--iteration', 6)
    assert ran.returncode == 0, ran.stderr
    assert 'step skipped (1 so far)' in ran.stdout + ran.stderr
    with open(places.results / f'log{stage}' / 'losses.csv', newline='') as file:
        assert sum(float(row['skipped']) for row in csv.DictReader(file)) == 1
    content = torch.load(places.results / f'model{stage}' / 'Tiny_params_0000006.pt',
                         weights_only=True)
    assert content['progress']['skipped'] == 1


def test_a_skipped_step_leaves_no_trace(tiny_settings):
    learner = locator.Locating(tiny_settings(stage=0, batch_size=2), torch.device('cpu'))
    batch = {domain: torch.rand(2, 3, 32, 32) for domain in 'AB'}
    learner.step(batch, 0)
    before = {name: value.clone() for name, value in learner.networks.state_dict().items()}
    moments = [value.clone() for state in learner.optimizers['locator'].state.values()
               for value in state.values()]
    assert learner.step({**batch, 'A': batch['A'] * float('inf')}, 1)['skipped']
    assert same(before, dict(learner.networks.state_dict()))
    assert same(moments, [value for state in learner.optimizers['locator'].state.values()
                          for value in state.values()])
    assert not learner.step(batch, 2)['skipped']


def test_steps_skipped_in_a_row_end_the_run_and_name_the_loss(places):
    broken = mock.patch.object(losses, 'class_attention',
                               lambda logit, source_domain: logit.sum() * float('inf'))
    flags = [*RUN, *STAGE_1, '--iteration', 2, '--save_freq', 1]
    places.done(*flags)
    good = places.results / 'model1' / 'Tiny_params_0000002.pt'
    before = torch.load(good, weights_only=True)
    with broken:  # and the good checkpoint is not pushed out by saving in between
        stopped = places.run(*flags, '--resume', 'True', '--iteration', 50)
    assert stopped.returncode == 1
    last = stopped.stderr.splitlines()[-1]
    assert 'the class_attention loss became' in last and 'at iteration 3 ' in last
    assert f'{steps.GIVE_UP_AFTER} steps in a row' in last and f'{good} is kept' in last
    assert same(before, torch.load(good, weights_only=True))


def test_absurd_learning_rates_end_without_a_traceback(places):
    stopped = places.run(*RUN, *STAGE_1, '--iteration', 60, '--lr', 1e30)
    assert stopped.returncode == 1 and 'steps in a row had to be skipped' in stopped.stderr


def test_a_picture_that_vanishes_is_named_and_the_run_is_kept(places):
    def remove(values):
        for path in (places.data / 'trainA').glob('*.png'):
            path.unlink()

    with at_iteration(LabelTransfer, 2, remove):
        stopped = places.run(*RUN, *STAGE_1, '--iteration', 9, '--save_freq', 1, '--cache_mb', 0)
    assert stopped.returncode == 1, stopped.stderr
    last = stopped.stderr.splitlines()[-1]
    assert 'trainA/a' in last and 'Tiny_params_0000002.pt is kept' in last


def test_runs_that_begin_in_one_second_all_stay(places):
    with mock.patch('logbook.datetime') as clock:
        clock.now.return_value = datetime(2030, 1, 1)
        for _ in range(4):
            places.done(*RUN, *STAGE_1, '--iteration', 1)
    earlier = sorted(path.name for path in places.results.glob('earlier_*'))
    assert earlier == ['earlier_20300101_000000', *(f'earlier_20300101_000000_{n}' for n in (2, 3))]
    assert all((places.results / name / 'model1' / 'best.pt').is_file() for name in earlier)
