"""--dry_run, the memory check, and command lines drawn at random."""
from types import SimpleNamespace

import pytest
import torch

import rehearsal
from conftest import STAGE_1, TINY, TINY_FLAGS, Places, assert_one_line_error
from fuzz import run as fuzz
from settings import resolve

RUN = ['--phase', 'train', *TINY_FLAGS, '--batch_size', 1, '--iteration', 1]


@pytest.fixture
def places(data_root, tmp_path):
    return Places(data_root, tmp_path)


def test_a_dry_run_tells_the_plan_and_writes_nothing(places):
    out = places.done(*RUN, '--dry_run', 'True')
    for text in ('stage 0, locator', 'stage 1, published', 'stage 2, student', '5 disease and 3 normal',
                 '2 labelled ones in val', 'nothing was written'):
        assert text in out
    assert out.count('ch 4, pictures of 32×32') == 1  # stage 1's flags; the others have their own
    assert not places.results.parent.exists()
    places.done(*RUN, *STAGE_1)
    before = sorted(places.results.rglob('*'))
    assert 'would be moved' in places.done(*RUN, *STAGE_1, '--dry_run', 'True')
    assert sorted(places.results.rglob('*')) == before


def test_a_dry_run_finds_what_would_stop_the_run(places, monkeypatch):
    (places.data / 'trainA' / 'x.png').write_text('text')
    refused = places.run(*RUN, '--dry_run', 'True')
    assert refused.returncode == 2 and 'x.png' in refused.stderr
    (places.data / 'trainA' / 'x.png').unlink()
    assert_one_line_error(places.run(*RUN, '--dry_run', 'True', '--result_dir',
                                     places.data / 'trainA' / 'a0.png' / 'x'), '--result_dir')
    assert_one_line_error(places.run('--phase', 'train', '--stage', 2, '--dry_run', 'True'),
                          'stage-1 network is needed')
    monkeypatch.setattr(rehearsal.shutil, 'disk_usage', lambda path: SimpleNamespace(free=1000))
    assert_one_line_error(places.run(*RUN, '--dry_run', 'True'), 'checkpoints need', '--keep')
    assert_one_line_error(places.run('--phase', 'test', '--dry_run', 'True'), '--dry_run')


def test_a_network_that_no_memory_holds_is_refused_before_it_is_made(places):
    for flags in (['--ch', 4096], ['--batch_size', 65536, '--ch', 62, '--img_size', 256]):
        assert_one_line_error(places.run(*RUN, *STAGE_1, *flags), flags[0], 'of memory')


def test_disk_and_memory_follow_the_networks(tiny_settings):
    small, large = (tiny_settings(ch=ch, location_weight=0.0) for ch in (4, 8))
    assert rehearsal.parameters(small)['genA2B'] == sum(
        parameter.numel() for parameter in _built(small)['genA2B'].parameters())
    assert rehearsal.memory_needed(large) > rehearsal.memory_needed(small)
    assert rehearsal.disk_needed(large) > 2 * rehearsal.disk_needed(small)
    student = resolve({**TINY, 'stage': 2, 'keep': 1})
    one = sum(rehearsal.parameters(student).values()) / 3
    assert rehearsal.disk_needed(student) == pytest.approx(3 * one * (12 + 4 + 4))


def _built(settings):
    from networks import build_networks
    return build_networks(settings)


def test_checkpoints_are_as_large_as_foretold(places, tiny_settings):
    places.done(*RUN, *STAGE_1, '--keep', 1)
    wanted = rehearsal.disk_needed(tiny_settings(keep=1, location_weight=0.0)) / 3
    size = (places.results / 'model1' / 'Tiny_params_0000001.pt').stat().st_size
    assert wanted * 0.9 < size < wanted * 1.1 + 200_000  # names and states besides numbers


def test_random_command_lines_end_well(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    assert fuzz(25, seed=3, report=print) == []
