"""How long training still takes: by iterations done, and tried before the first one."""
import torch

from config import resolve
from helpers import TINY
from runtime import time_left
from runtime.time_left import Later, TimeLeft, duration_text
from stages.student import StudentStage
from stages.trial import seconds_per_iteration


def test_the_estimate_follows_the_iterations(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time_left.time, 'monotonic', lambda: now[0])
    estimate, said = TimeLeft(1000, 1, Later(120.0, 3)), []
    now[0] += 100  # the first iteration does not count
    for _ in range(12):
        said.append(estimate.tick())
        now[0] += 0.6
    # after ten more: 989 iterations of 0.6 s and two minutes
    assert said == [''] * 10 + ['about 12 min left over all stages, without scoring', '']
    now[0] += 100
    estimate.scored(100.0)  # and so three of the later ones
    estimate.tick()
    assert estimate.text == 'about 17 min left over all stages'
    for _ in range(987):
        estimate.tick()
        now[0] += 1.2
    assert estimate.text == 'about 7 min left over all stages'
    assert not TimeLeft(5, 1, None).text
    slow = TimeLeft(100, 0, None)
    slow.tick()
    now[0] += 70  # one that takes this long is enough
    assert slow.tick() == 'about 1.9 h left, without scoring'


def test_durations_in_words():
    assert [duration_text(seconds) for seconds in (0.1, 40, 60, 14 * 60, 5400, 200_000)] == [
        'about 1 s', 'about 40 s', 'about 1 min', 'about 14 min', 'about 1.5 h', 'about 2.3 days']


def test_a_trial_takes_as_long_as_its_iterations():
    config = resolve({**TINY, 'stage': 2, 'batch_size': 1})
    assert 0 < seconds_per_iteration(StudentStage, config, torch.device('cpu')) < 60
