"""benchmarks/gpu.py: its miniature on a CPU, restarted, and what it would say of a broken GPU."""
import time
from types import SimpleNamespace

import pytest
import torch

import accuracy
import gpu
from helpers import read_json
from preparation import phantom


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr('reporting.training_log.curves', SimpleNamespace(draw=lambda folder: 0))
    monkeypatch.setattr(phantom, 'SUBSETS', [one._replace(count=4) for one in phantom.SUBSETS])


def test_the_miniature_measures_everything_once(without_gpu, tmp_path, monkeypatch, capsys):
    failing = gpu.GPUBench.memory_over_time
    monkeypatch.setattr(gpu.GPUBench, 'memory_over_time', lambda bench: 1 / 0)
    assert gpu.main([str(tmp_path)]) == 1
    assert 'FAILED: memory over 4 iterations: error ZeroDivisionError' in capsys.readouterr().out
    first = read_json(tmp_path / 'figures.json')['figures']
    assert len(first) == 19 and sum('error' in figure for figure in first.values()) == 1
    for name, figure in first.items():
        if 'bf16' not in name and 'losses' in figure:
            assert figure['losses'] == 0 and figure['ok']
    # the same command repeats what failed, and nothing else
    monkeypatch.setattr(gpu.GPUBench, 'memory_over_time', failing)
    for name in ('agreement', 'resume', 'predict', 'timed_step'):
        monkeypatch.setattr(gpu.GPUBench, name, lambda *_: pytest.fail('measured twice'))
    assert gpu.main([str(tmp_path)]) == 0
    second = read_json(tmp_path / 'figures.json')['figures']
    assert second.keys() == first.keys()
    assert second['predict against the CPU'] == first['predict against the CPU']
    assert '| first, batch 1, bf16, compiled |' in capsys.readouterr().out


def test_when_time_is_up_what_is_known_is_kept(without_gpu, tmp_path, monkeypatch, capsys):
    def measure(bench, record, data_root):
        record.add('quick', lambda: {'s': 1.0})
        record.add('slow', lambda: time.sleep(60))
    monkeypatch.setattr(gpu, 'run', measure)
    monkeypatch.setattr(gpu, 'TIME_TO_SAVE', 59.8)
    assert gpu.main([str(tmp_path), '--minutes', '1']) == 0
    assert 'time is up' in capsys.readouterr().out
    assert [*read_json(tmp_path / 'figures.json')['figures']] == ['quick']
    machine = read_json(tmp_path / 'figures.json')['machine'] | {'device': 'other'}
    with pytest.raises(SystemExit, match='another machine'):
        gpu.Record(tmp_path, machine)


def test_the_summary_compares_with_the_published_step():
    taken = {'share of matrix rate': 0.5, 'peak_GB': 3.0}
    steps = {gpu.RIVAL: {'median_s': 2.0, **taken}, 'bf16': {'median_s': 0.5, **taken},
             'fp32': {'error': 'OutOfMemoryError'}}
    known = {gpu.step_name('second', 8, mode): figure for mode, figure in steps.items()}
    table = gpu.summary(SimpleNamespace(size=gpu.FULL), SimpleNamespace(figures=known))
    assert '| second, batch 8, bf16 | 0.5000 | 0.25 | 50 % | 3.0 |' in table
    assert table.count('second, batch 8') == 2


def test_a_difference_is_a_failure_of_its_kind():
    def values(**changed):
        return {kind: {'a': torch.tensor([1.0, 2.0]) if kind != 'losses' else torch.tensor(2.0)}
                for kind in ('outputs', 'losses', 'gradients')} | changed
    assert gpu.compare(values(), values(), gpu.EXACT)['ok']
    for kind in gpu.EXACT:
        for wrong in (1.9, float('nan')):
            changed = torch.tensor(wrong) if kind == 'losses' else torch.tensor([1.0, wrong])
            found = gpu.compare(values(**{kind: {'a': changed}}), values(), gpu.EXACT)
            assert not found['ok'] and found[kind] != 0
    with pytest.raises(ValueError, match='gradients'):
        gpu.compare(values(gradients={}), values(), gpu.EXACT)


def test_accuracy_is_measured_on_the_sets_that_are_there(tmp_path, monkeypatch):
    (tmp_path / 'data' / 'ISIC').mkdir(parents=True)

    def stored_row(options, name, seed, row):
        assert options.student == '--img_size 256' and options.size == '--ch 62 --img_size 256'
        assert row in accuracy.ROWS and options.output == tmp_path / 'accuracy'
        return {'chosen': 'otsu', 'cases': {'x': {'JA': 40.0}, 'y': {'JA': 60.0}}}
    monkeypatch.setattr(accuracy, 'stored_row', stored_row)
    found = {name: measure() for name, measure
             in gpu.accuracy_figures(tmp_path, tmp_path / 'data', 'cpu')}
    assert found['accuracy, ISIC, ours, stage 0'] == {'JA': 50, 'images': 2, 'chosen': 'otsu'}
    assert len(found) == len(gpu.ACCURACY_ROWS)
