"""Runs that are stopped, killed, out of disk or out of numbers: nothing that was done is lost."""
import copy
import itertools
import os
import resource
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest
import torch

import checkpoint as checkpoints
import config
from helpers import STAGE_1, TINY, TINY_FLAGS, names, read_csv, same
from stages import losses, optim
from stages.label_transfer import LabelTransferStage
from stages.localizer import LocalizerStage
from stages.student import StudentStage

RUN = ['--phase', 'train', *TINY_FLAGS, '--batch_size', 1, '--normal_batch', 1, '--print_freq', 100,
       '--save_freq', 100]
STAGES = LocalizerStage, LabelTransferStage, StudentStage


def at_iteration(stage_class, number, act):
    """A patch that calls `act` at the end of a stage's step at this iteration, counted from 1."""
    step = stage_class.step

    def patched(self, batch, iteration):
        result = step(self, batch, iteration)
        if number == iteration + 1:
            act()
        return result
    return mock.patch.object(stage_class, 'step', patched)


def send(name, times=1):
    def act():
        for _ in range(times):
            os.kill(os.getpid(), getattr(signal, name))
    return act


def iterations(path):
    return [int(row['iteration']) for row in read_csv(path)]


def last_line(stopped):
    """What a run that had to fail says at last."""
    assert stopped.returncode == 1 and 'Traceback' not in stopped.stderr, stopped.stderr
    return stopped.stderr.splitlines()[-1]


@pytest.mark.parametrize('stage, name, teacher, more', [
    (0, 'SIGTERM', None, []), (1, 'SIGINT', None, STAGE_1), (2, 'SIGUSR1', 1, []),
    (2, 'SIGTERM', 0, ['--encoder', config.DEFAULT_ENCODER, '--pseudo_label_rule',
                       'grabcut', '--contrast_jitter', 'True'])])
def test_a_signal_saves_and_the_resumed_run_is_the_same_to_the_bit(places, all_stages_run, stage,
                                                                   name, teacher, more):
    flags = [*RUN, '--iteration', 4, '--stage', stage, '--augment', 'True', *more]
    if teacher is not None:
        flags += ['--teacher', all_stages_run.results / f'model{teacher}' / 'best.pt']
    places.done(*flags)
    folder = places.results / f'model{stage}'
    last = folder / 'Tiny_params_0000004.pt'
    whole = torch.load(last, weights_only=True)
    with at_iteration(STAGES[stage], 2, send(name)):
        stopped = places.run(*flags)
    assert stopped.returncode == 0, stopped.stderr
    assert f'{name}: finishing this iteration' in stopped.stderr
    assert 'Tiny_params_0000002.pt is kept, and --resume True goes on from it' in stopped.stderr
    assert not last.exists() and checkpoints.read(folder / 'Tiny_params_0000002.pt').iteration == 2
    # any number of reading threads goes on the same way
    places.done('--phase', 'train', '--stage', stage, '--resume', 'True', '--num_workers', 2)
    assert same(whole, torch.load(last, weights_only=True))
    assert iterations(places.results / f'log{stage}' / 'losses.csv') == [1, 2, 3, 4]


def test_a_stopped_run_of_all_stages_goes_on_where_it_was(places, small_stages):
    flags = [*RUN, '--iteration', 3]
    with (at_iteration(StudentStage, 1, send('SIGTERM')),
          mock.patch('workflow.what_is_later', lambda *_: {})):  # which tries that step
        stopped = places.run(*flags)
    assert stopped.returncode == 0
    assert '--- stage 2\n' in stopped.stdout and 'what val chooses' not in stopped.stdout
    resumed = places.done(*flags, '--resume', 'True')
    assert 'already is at iteration 2' in resumed and 'what val chooses' in resumed
    assert iterations(places.results / 'log2' / 'losses.csv') == [1, 2, 3]


def test_a_second_sigint_leaves_at_once(places):
    with at_iteration(LabelTransferStage, 3, send('SIGINT', times=2)):
        stopped = places.run(*RUN, *STAGE_1, '--iteration', 5, '--save_freq', 2)
    assert stopped.returncode == 130
    assert 'left at once; ' in stopped.stderr and 'Tiny_params_0000002.pt is kept' in stopped.stderr
    assert not (places.results / 'model1' / 'Tiny_params_0000003.pt').exists()


def test_a_killed_run_goes_on_from_its_last_whole_checkpoint(places):
    folder = places.results / 'model1'
    flags = [*RUN, *STAGE_1, '--iteration', 100000, '--save_freq', 1, '--resume', 'True']
    here = 'import sys, helpers; helpers.run_here(*sys.argv[1:])'  # in a process that can be killed
    running = subprocess.Popen([sys.executable, '-c', here, *map(str, (*places.flags, *flags))],
                               text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)})
    deadline = time.monotonic() + 280
    while (running.poll() is None and len(checkpoints.numbered(folder, 'Tiny')) < 2
           and time.monotonic() < deadline):
        time.sleep(0.01)
    running.kill()
    _, stderr = running.communicate()
    assert running.returncode == -signal.SIGKILL, stderr
    files = [folder / 'best.pt', *checkpoints.numbered(folder, 'Tiny')]
    reached = max(checkpoints.read(path).iteration for path in files)
    (folder / f'.tmp_{"0" * 8}_{"0" * 16}.pt').write_bytes(b'half')
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
    last = last_line(stopped)
    assert 'Tiny_params_0000004.pt: cannot be written: No space left' in last
    assert 'Tiny_params_0000002.pt is kept' in last
    assert names(places.results / 'model1') == ['Tiny_params_0000002.pt', 'best.pt']
    assert 'finished at iteration 4' in places.done(*flags, '--resume', 'True')


def test_a_limit_that_torch_itself_runs_into(places):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))  # logs fit, not a checkpoint
    try:
        stopped = places.run(*RUN, *STAGE_1, '--iteration', 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    last = last_line(stopped)
    assert 'Tiny_params_0000001.pt: cannot be written' in last
    assert 'no checkpoint had been written yet' in last and not names(places.results / 'model1')


def test_an_image_that_vanishes_is_named_and_the_run_is_kept(places):
    def remove():
        for path in (places.data / 'trainA').glob('*.png'):
            path.unlink()
    with at_iteration(LabelTransferStage, 2, remove):
        stopped = places.run(*RUN, *STAGE_1, '--iteration', 9, '--save_freq', 1, '--cache_mb', 0)
    last = last_line(stopped)
    assert 'trainA/a' in last and 'Tiny_params_0000002.pt is kept' in last


@pytest.mark.parametrize('stage, name', [(0, 'image_label'), (1, 'l1'), (1, 'adversarial'),
                                         (2, 'dice')])
def test_a_loss_that_is_no_number_costs_one_step(places, all_stages_run, stage, name):
    teacher = all_stages_run.results / 'model1' / 'best.pt'
    flags = (['--stage', 0], STAGE_1, ['--stage', 2, '--teacher', teacher])[stage]
    function, calls = getattr(losses, name), itertools.count(1)

    def broken_once(*arguments, **keywords):
        return function(*arguments, **keywords) * (float('nan') if next(calls) == 3 else 1)
    with mock.patch.object(losses, name, broken_once):
        run = places.run(*RUN, *flags, '--iteration', 4)
    assert run.returncode == 0, run.stderr
    assert 'step skipped (1 so far)' in run.stdout + run.stderr
    log = read_csv(places.results / f'log{stage}' / 'losses.csv')
    assert sum(float(row['skipped']) for row in log) == 1
    last = places.results / f'model{stage}' / 'Tiny_params_0000004.pt'
    assert torch.load(last, weights_only=True)['progress']['skipped'] == 1


def test_a_skipped_step_leaves_no_trace():
    stage = LocalizerStage(config.resolve({**TINY, 'stage': 0}), torch.device('cpu'))
    batch = {domain: torch.rand(2, 3, 32, 32) for domain in 'AB'}
    moments = stage.optimizers['localizer'].state
    stage.step(batch, 0)
    before = copy.deepcopy([stage.networks.state_dict(), list(moments.values())])
    assert moments and stage.step({**batch, 'A': batch['A'] * float('inf')}, 1).skipped
    assert same(before, [stage.networks.state_dict(), list(moments.values())])
    assert not stage.step(batch, 2).skipped


def test_steps_skipped_in_a_row_end_the_run_and_name_the_loss(places):
    def broken(logit, source_domain):
        return logit.sum() * float('inf')
    flags = [*RUN, *STAGE_1, '--iteration', 2, '--save_freq', 1]
    places.done(*flags)
    good = places.results / 'model1' / 'Tiny_params_0000002.pt'
    before = torch.load(good, weights_only=True)
    # the good checkpoint is not pushed out by saving in between
    with mock.patch.object(losses, 'class_attention', broken):
        stopped = places.run(*flags, '--resume', 'True', '--iteration', 50)
    last = last_line(stopped)
    assert 'the class_attention loss became' in last and 'at iteration 3 ' in last
    assert f'{optim.GIVE_UP_AFTER} steps in a row' in last and f'{good} is kept' in last
    assert same(before, torch.load(good, weights_only=True))


def test_absurd_learning_rates_end_without_a_traceback(places):
    last = last_line(places.run(*RUN, *STAGE_1, '--iteration', 60, '--lr', 1e30))
    assert last.startswith('stopped: the ') and 'no checkpoint' in last
    assert 'steps in a row had to be skipped' in last
