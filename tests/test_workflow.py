"""Which runs a command line stands for, and which torch is refused."""
from importlib import metadata

import pytest

import workflow
from config import preset, resolve
from helpers import assert_one_line_error


def runs(**flags):
    """Phase and stage of the runs that these flags stand for."""
    return [(run.flags.get('phase', 'train'), run.flags.get('stage'))
            for run in workflow.plan(flags)]


def test_which_runs_a_command_stands_for():
    train = [('train', 0), ('train', 2), ('val', 2)]
    assert runs() == runs(phase='train') == runs(profile='dermoscopy', dataset='none') == train
    alone = [('train', 1)]
    assert runs(stage=1) == [('train', 0), *alone]
    assert runs(stage=1, localization_weight=0.0) == runs(stage=1, teacher='x.pt') == alone
    assert runs(stage=0) == [('train', 0)] and runs(stage=2) == [('train', 2)]
    assert runs(recipe='published') == [('train', 1), ('train', 2), ('val', 2)]
    assert runs(recipe='published', generation='second') == [('train', 1), ('val', 1)]
    for phase in ('val', 'test', 'predict', 'export'):
        assert runs(phase=phase, dataset='none', result_dir='nowhere') == [(phase, None)]


def test_flags_of_one_stage_stay_with_it():
    plan = workflow.plan({'ch': 62, 'iteration': 9, 'seed': 5, 'save_freq': 3})
    assert [run.is_final_val for run in plan] == [False, False, True]
    zero, two, val = (run.flags for run in plan)
    assert (zero['seed'], zero['save_freq']) == (5, 3) and not {'ch', 'iteration'} & zero.keys()
    assert (two['ch'], two['iteration'], two['seed']) == (62, 9, 5)
    assert two['teacher'] == 'results/phantom/model0' and not {'ch', 'seed'} & val.keys()
    assert resolve(zero).iteration == preset(stage=0, dataset='phantom')['iteration'] != 9
    one, two, _ = (run.flags for run in workflow.plan({'recipe': 'published', 'ch': 62}))
    assert one['ch'] == 62 and 'ch' not in two


def test_flags_of_other_phases_and_stages_are_named():
    ignored = workflow.ignored_flags
    assert ignored({'phase': 'test', 'rounds': 2, 'source': ('x',), 'dataset': 'x'}) == (
        'ignored here: --rounds (of --phase train), --source (of --phase prepare)')
    assert ignored({'rounds': 2, 'blur_jitter': True, 'ch': 4, 'postprocess': 'otsu'}) == ''
    assert ignored({'stage': 0, 'rounds': 2, 'rotate': 5.0, 'cam_weight': 1.0}) == (
        'ignored here: --rounds (of stage 2), --cam_weight (of stage 1)')
    assert ignored({'stage': 1, 'blur_jitter': True}) == ''  # of the localizer before
    assert ignored({'stage': 2, 'recipe': 'published', 'cam_weight': 1.0, 'rounds': 2}) == (
        'ignored here: --rounds (of stage 2)')
    assert ignored({'stage': 2, 'resume': True, 'cam_weight': 1.0}) == ''  # of a published run


@pytest.mark.parametrize('version, is_refused', [
    ('2.9.1', True), ('1.13.0+cu117', True), ('2.10.0', False), ('3.0.0+cpu', False)])
def test_a_torch_with_known_holes_is_refused(version, is_refused, places, monkeypatch):
    monkeypatch.setattr(metadata, 'version', lambda package: version)
    if not is_refused:
        return workflow.check_torch()
    for phase in ('train', 'predict'):
        assert_one_line_error(places.run('--phase', phase), f'torch {version}', 'torch>=2.10')
    assert not places.results.exists()
