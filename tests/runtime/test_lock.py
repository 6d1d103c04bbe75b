"""One program at a time writes into a folder; what a killed one held or left is taken over."""
import json
import os
import signal
import subprocess
import sys

import pytest

from helpers import ONLY_MASKS, PROJECT, STAGE_1, TINY_FLAGS, assert_one_line_error, names
from runtime import lock
from runtime.files import atomic_write, remove_temporary
from runtime.lock import lock_file, locked
from utils import UserError

RUN = ['--phase', 'train', *TINY_FLAGS, '--batch_size', 1, '--iteration', 1]


def process(code, *arguments):
    """A Python process with the project and the tests on its path."""
    paths = [str(PROJECT), str(PROJECT / 'tests'), *sys.path]
    return subprocess.run([sys.executable, '-c', code, *map(str, arguments)], capture_output=True,
                          text=True, timeout=200,
                          env={**os.environ, 'PYTHONPATH': os.pathsep.join(paths)})


def test_a_held_folder_is_refused_under_every_name_and_free_afterwards(tmp_path):
    folder, link = tmp_path / 'run', tmp_path / 'link'
    link.symlink_to(folder)
    with locked(folder):
        for path in (folder, link, tmp_path / 'x' / '..' / 'run'):
            with pytest.raises(UserError, match=f'in use by process {os.getpid()} on .*--result_d'):
                locked(path).__enter__()
        with locked(tmp_path / 'other'):
            pass
    with locked(link):
        pass
    assert names(tmp_path) == ['link']


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    folder = tmp_path / 'run'
    killed = process('import os, sys; from pathlib import Path; from runtime.lock import locked\n'
                     'with locked(Path(sys.argv[1])): os.kill(os.getpid(), 9)', folder)
    assert killed.returncode == -signal.SIGKILL and lock_file(folder).is_file(), killed.stderr
    with locked(folder):
        assert json.loads(lock_file(folder).read_text())['pid'] == os.getpid()
    assert not names(tmp_path)


@pytest.mark.parametrize('changed, is_refused', [
    ({'host': 'other', 'boot': 'x'}, True),  # a network disk: perhaps it still runs
    ({'host': 'container', 'start': '1'}, False),  # of this machine, whose kernel knows of no lock
    ({'boot': 'x'}, False),  # before this machine was started anew
    ({'start': '1'}, False),  # another process has the number now
    ({}, True)])  # a disk that knows no locks
def test_what_the_file_says_of_another_process(changed, is_refused, tmp_path):
    holder = {**lock._this_process(), 'pid': os.getppid(), 'start': lock._start(os.getppid())}
    path = lock_file(tmp_path / 'run')
    path.write_text(json.dumps({**holder, **changed}))
    if is_refused:
        with pytest.raises(UserError, match=f'in use by process {os.getppid()} on') as error:
            locked(tmp_path / 'run').__enter__()
        assert ('host' in changed) == (f'remove {path}' in str(error.value))
    else:
        with locked(tmp_path / 'run'):
            pass
    assert path.exists() == is_refused


def test_a_file_of_the_user_or_a_link_in_place_of_a_lock_stays(tmp_path):
    path, mine = lock_file(tmp_path / 'run'), tmp_path / 'mine'
    for make in (lambda: path.write_text('mine'), lambda: path.symlink_to(mine)):
        mine.write_text('mine')
        make()
        with pytest.raises(UserError, match=str(path)):
            locked(tmp_path / 'run').__enter__()
        assert path.read_text() == mine.read_text() == 'mine'
        path.unlink()


def test_the_same_training_twice(stage_1, small_stages):
    """The second is refused before anything of the first is moved, whatever stage that is at."""
    places = stage_1
    before = names(places.results)
    with locked(places.results / 'model1'):
        for phase in ('train', 'val'):
            assert_one_line_error(places.run(*RUN, *STAGE_1, '--phase', phase), 'model1', 'in use')
        places.done('--phase', 'test', *ONLY_MASKS)  # reads what is whole
    with locked(places.results / 'test1'):
        assert_one_line_error(places.run('--phase', 'test', '--stage', 1), 'test1', 'in use')
    assert names(places.results) == sorted([*before, 'test1'])
    with locked(places.results / 'model2'):  # at its second stage
        assert_one_line_error(places.run(*RUN), 'model2', 'in use')
    assert names(places.results) == sorted([*before, 'test1'])


@pytest.mark.parametrize('name', ['sub01.session12345.nii', 'a.NII.GZ', 'a.b.c', 'x', 'a.b\nc'])
def test_what_a_killed_program_had_begun_to_write_is_removed(tmp_path, name):
    with atomic_write(tmp_path / name) as temporary:
        assert temporary.suffixes[-1:] == [(tmp_path / name).suffix.lower()][:'.' in name]
        temporary.with_name(temporary.name.replace('.tmp', '.part')).touch()
    left = next(tmp_path.glob('.part*'))
    left.rename(left.with_name(left.name.replace('.part', '.tmp')))
    remove_temporary(tmp_path, ['other'])
    assert len(names(tmp_path)) == 2
    remove_temporary(tmp_path, [name])
    assert names(tmp_path) == [name]


# the program with small stages, killed where stage 2 begins
KILLED_BETWEEN = """import os, sys, config, conftest, helpers, trainer
config.PRESETS = conftest.SMALL_PRESETS
train = trainer.Trainer.train
def killed(self, *arguments):
    if self.config.stage == 2:
        os.kill(os.getpid(), 9)
    train(self, *arguments)
trainer.Trainer.train = killed
helpers.run_here(*sys.argv[1:])"""


def test_killed_between_the_stages_of_one_command(places, small_stages):
    killed = process(KILLED_BETWEEN, *places.flags, '--phase', 'train')
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert 'Tiny_params_0000002.pt' in names(places.results / 'model0')
    assert lock_file(places.results / 'model2').is_file()
    out = places.done('--phase', 'train', '--resume', 'True')
    assert 'nothing to do: ' in out and 'what val chooses' in out
    assert 'best.pt' in names(places.results / 'model2')
    assert not [path for path in places.results.rglob('.*')]


# a pool of workers whose parent is killed
ORPHANS = """import os
from inference.postprocess import worker_pool
if __name__ == '__main__':
    print(worker_pool().submit(os.getpid).result(), flush=True)
    os.kill(os.getpid(), 9)"""


def test_workers_end_with_their_parent(tmp_path):
    script = tmp_path / 'orphans.py'
    script.write_text(ORPHANS)
    killed = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=200,
                            env={**os.environ, 'PYTHONPATH': str(PROJECT)})
    # its output is at an end when no worker holds it open any more
    assert killed.returncode == -signal.SIGKILL
    assert not lock._start(int(killed.stdout))
