"""--dry_run, the memory check, and command lines drawn at random."""
from types import SimpleNamespace

import pytest
import torch

from checkpoint import FORMAT
from config import resolve
from fuzz import run as fuzz
from helpers import STAGE_1, TINY, TINY_FLAGS, assert_one_line_error
from networks import build_networks, count_parameters
from runtime import preflight
from utils import has_bfloat16

RUN = ['--phase', 'train', *TINY_FLAGS, '--batch_size', 1, '--iteration', 1]
DRY_RUN = [*RUN, '--dry_run', 'True']


def test_a_dry_run_prints_the_plan_and_writes_nothing(places):
    out = places.done(*DRY_RUN)
    for text in ('stage 0: localizer (ours recipe), starts anew', 'stage 2: student (ours',
                 '5 disease and 3 normal images', '2 labeled images in val', '\n  time      about ',
                 ' over all stages', 'device: cpu, ', 'nothing was written'):
        assert text in out
    assert out.count('ch 4, images of 32×32') == 1  # the student's; the localizer has its own
    assert not places.results.parent.exists()


@pytest.mark.parametrize('units, used', [
    ({'avx512_bf16': True}, True), ({'amx_bf16': True}, True), ({'bf16': True}, True),
    ({'avx2': True, 'avx512_f': True, 'avx512_bf16': False}, False)])
def test_amp_is_left_off_where_a_cpu_would_be_slower_with_it(units, used, monkeypatch, capsys):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: units, raising=False)
    has_bfloat16.cache_clear()
    for amp in (True, True, False):  # of several stages
        config = preflight.with_usable_amp(resolve({'amp': amp}), torch.device('cpu'))
        assert config.amp == (amp and used)
    said = capsys.readouterr().out
    assert said.count('\n') == (not used) and ('--amp True: left off' in said) == (not used)
    has_bfloat16.cache_clear()


def test_a_dry_run_of_a_stage_that_has_run(stage_1_run):
    before = sorted(stage_1_run.results.rglob('*'))
    moved = f'would be moved to {stage_1_run.results}/earlier_'
    assert moved in stage_1_run.done(*DRY_RUN, *STAGE_1)
    resumed = stage_1_run.done(*DRY_RUN, *STAGE_1, '--resume', 'True')
    assert '(published recipe), resumes' in resumed
    assert 'checkpoints every 2 iterations' in resumed  # as in the checkpoint
    assert sorted(stage_1_run.results.rglob('*')) == before


def test_a_dry_run_finds_what_would_stop_the_run(places, monkeypatch):
    (places.data / 'trainA' / 'x.png').write_text('text')
    refused = places.run(*DRY_RUN)
    assert refused.returncode == 2 and 'x.png' in refused.stderr
    (places.data / 'trainA' / 'x.png').unlink()
    no_folder = places.data / 'trainA' / 'a0.png' / 'x'
    assert_one_line_error(places.run(*DRY_RUN, '--result_dir', no_folder), '--result_dir')
    assert_one_line_error(places.run(*DRY_RUN[:2], '--stage', 2, *DRY_RUN[-2:]),
                          'needed as teacher')
    with torch.device('meta'):
        networks = build_networks(resolve({**TINY, 'recipe': 'published', 'ch': 5}), ['genA2B'])
    config = resolve({**TINY, 'recipe': 'published', 'stage': 1}).saved_values()
    torch.save({'format': FORMAT, 'iteration': 1, 'config': config, 'genA2B': {
        key: torch.zeros(tensor.shape) for key, tensor in networks['genA2B'].state_dict().items()
    }}, places.data / 'x.pt')
    assert_one_line_error(places.run(*DRY_RUN[:2], '--stage', 2, *DRY_RUN[-2:], '--teacher',
                                     places.data / 'x.pt'), 'x.pt: genA2B does not fit')
    monkeypatch.setattr(preflight.shutil, 'disk_usage', lambda path: SimpleNamespace(free=1000))
    assert_one_line_error(places.run(*DRY_RUN), 'checkpoints need', '--keep_checkpoints')
    assert_one_line_error(places.run('--phase', 'test', '--dry_run', 'True'), '--dry_run')


def test_a_network_that_no_memory_holds_is_refused_before_it_is_built(places):
    for flags in (['--ch', 4096], ['--batch_size', 65536, '--ch', 62, '--img_size', 256]):
        assert_one_line_error(places.run(*RUN, *STAGE_1, *flags), flags[0], 'of memory')


def test_disk_and_memory_follow_the_networks(stage_1_run):
    small, large = (resolve({**TINY, 'recipe': 'published', 'ch': ch}) for ch in (4, 8))
    of_small, of_large = count_parameters(small), count_parameters(large)
    built = build_networks(small, names=['genA2B'])['genA2B']
    assert of_small['genA2B'] == sum(parameter.numel() for parameter in built.parameters())
    assert preflight.memory_needed(large, of_large) > preflight.memory_needed(small, of_small)
    assert preflight.disk_needed(large, of_large) > 2 * preflight.disk_needed(small, of_small)
    student = resolve({**TINY, 'stage': 2, 'keep_checkpoints': 1})
    counts = count_parameters(student)
    per_network = sum(counts.values()) / 3
    assert preflight.disk_needed(student, counts) == pytest.approx(3 * per_network * (12 + 4 + 4))
    # and checkpoints are as large as predicted
    config = resolve({**TINY, 'recipe': 'published', 'keep_checkpoints': 1})
    predicted = preflight.disk_needed(config, count_parameters(config)) / 3
    size = (stage_1_run.results / 'model1' / 'Tiny_params_0000002.pt').stat().st_size
    assert predicted * 0.9 < size < predicted * 1.1 + 200_000  # names and states besides numbers


def test_random_command_lines_end_well(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('reporting.curves.draw', lambda folder: None)  # it has its own tests
    torch.manual_seed(0)
    assert fuzz(25, seed=3, report=print) == []
