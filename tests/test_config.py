"""The options: how each is declared, their bounds, presets and precedence, and the checkpoint's."""
import dataclasses
import math
from typing import Any

import pytest

from config import (
    ADVANCED,
    ARCHITECTURE,
    GROUPS,
    NETWORKS_OF,
    OPTIONS,
    PHASES,
    PRESETS,
    PROFILES,
    SAVED,
    Config,
    method_of,
    preset,
    resolve,
)
from utils import UserError

# options that say where things are or how this machine computes, not how a network was trained
PLACES = {'data_root', 'result_dir', 'checkpoint', 'resume', 'dry_run', 'device', 'teacher',
          'num_workers', 'cache_mb', 'compile', 'benchmark_flag', 'phase', 'source', 'input',
          'output', 'overwrite', 'probability', 'save_visuals'}


# ----------------------------------------------------------------------------------- declaration


@pytest.mark.parametrize('name', OPTIONS)
def test_every_option_is_declared_in_full(name):
    rules = OPTIONS[name].metadata
    assert rules['help'] and rules['help'] == rules['help'].strip()
    assert rules['group'] in GROUPS
    assert rules['phases'] and set(rules['phases']) <= set(PHASES)
    assert not rules['choices'] or OPTIONS[name].default in rules['choices']
    assert not rules['architecture'] or rules['saved']


def test_no_word_stands_for_two_options():
    words = [word for option in OPTIONS.values() for word in option.metadata['synonyms']]
    assert len(words) == len(set(words)) and not set(words) & OPTIONS.keys()


def test_defaults_are_within_their_own_bounds():
    assert Config().phase == 'train'


def test_what_a_checkpoint_keeps():
    assert not PLACES & set(SAVED) and PLACES < OPTIONS.keys()
    assert set(ARCHITECTURE) < set(SAVED) and {'stage', 'recipe', 'dataset', 'profile'} < set(SAVED)
    assert Config(ch=5).saved_values() == {name: getattr(Config(ch=5), name) for name in SAVED}


# ------------------------------------------------------------------------------ bounds and choices


def values_outside() -> list[tuple[str, Any, list[str]]]:
    """For each bound and list of choices: option, a value outside, and what the message says."""
    cases = []
    for name, option in OPTIONS.items():
        rules, step = option.metadata, 1 if option.type is int else 0.001
        if rules['choices']:
            outside = 99 if option.type is int else 'no_such_choice'
            cases.append((name, outside, [str(rules['choices'][-1])]))
            continue
        if math.isfinite(rules['at_least']):
            cases.append((name, rules['at_least'] - step, [f'at least {rules["at_least"]:g}']))
        if math.isfinite(rules['above']):
            cases.append((name, rules['above'], [f'above {rules["above"]:g}']))
        if math.isfinite(rules['at_most']):
            beyond = rules['at_most'] * 2 + step
            cases.append((name, beyond, [f'at most {rules["at_most"]:g}']))
        if option.type is float:
            cases += [(name, value, ['finite']) for value in (math.nan, math.inf)]
    return cases


@pytest.mark.parametrize('name, value, parts', [pytest.param(*case, id=f'{case[0]} {case[1]}')
                                                for case in values_outside()])
def test_a_value_outside_is_refused_with_one_line(name, value, parts):
    with pytest.raises(UserError) as caught:
        resolve({name: value})
    message = str(caught.value)
    assert message.startswith(f'--{name} {value}: ') and '\n' not in message
    assert all(part in message for part in parts)


@pytest.mark.parametrize('name', [name for name, option in OPTIONS.items()
                                  if option.type in (int, float)
                                  and not option.metadata['choices']])
def test_bounds_themselves_are_allowed(name):
    option = OPTIONS[name]
    for bound in ('at_least', 'at_most'):
        if math.isfinite(option.metadata[bound]):
            try:
                Config(**{name: option.type(option.metadata[bound])})
            except UserError as error:  # n_dis asks for a larger image, which is another rule
                assert '--img_size' in str(error)


def test_sizes_of_images():
    for size in (130, (96, 130), 92, 8196, (256, 8200)):
        with pytest.raises(UserError, match='--img_size'):
            resolve({'img_size': size})
    assert resolve({'img_size': 96}).size == (96, 96)
    assert resolve({'img_size': (128, 96)}).size == (128, 96)
    # the smallest: of discriminators in training, of a U-Net, of a localizer
    for flags, smallest in (({'n_dis': 4}, 24), ({'phase': 'test'}, 8), ({'stage': 2}, 32),
                            ({'stage': 2, 'student_network': 'localizer'}, 16), ({'stage': 0}, 16)):
        assert resolve({'img_size': smallest, **flags}).size == (smallest, smallest)
        with pytest.raises(UserError, match=f'at least {smallest}'):
            resolve({'img_size': smallest - 4, **flags})


@pytest.mark.parametrize('name', ['', '.', '..', '../etc', 'a/b'])
def test_a_data_set_is_a_plain_name(name):
    with pytest.raises(UserError, match='--dataset'):
        resolve({'dataset': name})


# --------------------------------------------------------------------------------------- presets


def test_presets_name_options_and_situations_that_there_are():
    situation = {'generation', 'recipe', 'dataset', 'profile', 'method'}
    for condition, values in PRESETS:
        assert condition.keys() <= situation and values.keys() <= OPTIONS.keys()
        assert condition.get('method', 'student') in NETWORKS_OF
        assert condition.get('profile', 'generic') in PROFILES


def test_the_profile_follows_the_name_of_the_data_set():
    for stage in (0, 1, 2):
        by_name = preset(stage=stage, dataset='ISIC')
        assert by_name == preset(stage=stage, dataset='other', profile='dermoscopy')
        assert by_name != preset(stage=stage, dataset='other')
        assert preset(stage=stage, dataset='BraTS') == preset(stage=stage, profile='brain_mri')
        assert preset(stage=stage, dataset='ISIC', profile='generic') == preset(stage=stage)
    isic, other = resolve({'dataset': 'ISIC'}), resolve({'dataset': 'other',
                                                         'profile': 'dermoscopy'})
    assert dataclasses.replace(other, dataset='ISIC', profile='') == isic
    assert isic.grabcut and isic.tta == 'flips' and isic.keep_components == 'central'


def test_later_rows_win():
    assert preset(stage=2)['lr'] == 1e-3  # not 1e-4 of the recipe
    assert preset(stage=2, profile='dermoscopy')['lr'] == 5e-4
    assert preset(stage=0, dataset='phantom')['iteration'] == 200  # not 900 of the localizer
    assert preset(phase='test')['batch_size'] == preset(stage=2, phase='test')['batch_size'] == 8


def test_flags_win_over_checkpoints_over_what_is_inherited_over_presets():
    assert resolve({'stage': 2, 'dataset': 'x'}).lr == 1e-3
    given = {'flags': {'stage': 2, 'dataset': 'x'}, 'saved': {}, 'inherited': {}}
    for source, value in (('inherited', 0.1), ('saved', 0.2), ('flags', 0.3)):
        given[source] = given[source] | {'lr': value}
        assert resolve(given['flags'], given['saved'], inherited=given['inherited']).lr == value
    # of the teacher, what it trained is not taken over
    kept = resolve({'stage': 2, 'dataset': 'x'}, inherited={
        'stage': 1, 'dataset': 'y', 'recipe': 'published', 'profile': 'dermoscopy', 'img_ch': 1})
    assert (kept.stage, kept.dataset, kept.recipe, kept.profile, kept.img_ch) == (
        2, 'x', 'ours', '', 1)


def test_a_flag_may_not_contradict_the_networks_of_a_file():
    saved = Config(ch=8, stage=1).saved_values()
    with pytest.raises(UserError, match='--ch 9 contradicts x.pt, which was made with ch 8'):
        resolve({'ch': 9}, saved, 'x.pt')
    with pytest.raises(UserError, match='--stage 2 contradicts x.pt'):
        resolve({'stage': 2}, saved, 'x.pt')
    assert resolve({'ch': 8, 'lr': 0.1, 'img_size': 128}, saved, 'x.pt').lr == 0.1
    full = Config(light=False).saved_values()
    with pytest.raises(UserError, match='--img_size 128 contradicts'):
        resolve({'img_size': 128}, full, 'x.pt')
    # a localizer has no generator, so that flags of one mean nothing
    assert resolve({'n_res': 2}, Config(stage=0).saved_values(), 'x.pt').n_res == 2


def test_what_a_recipe_and_a_stage_train():
    assert [method_of('ours', stage) for stage in (0, 1, 2)] == ['localizer', 'label_transfer',
                                                                 'student']
    assert method_of('published', 2) == 'label_transfer_refine'
    assert resolve({'stage': 2, 'recipe': 'published'}).takes_conditioning
    assert not resolve({'stage': 1, 'recipe': 'published'}).needs_teacher
    assert resolve({'stage': 1}).trained_by_localizer
    with pytest.raises(UserError, match='--stage 2: the second generation'):
        resolve({'stage': 2, 'recipe': 'published', 'generation': 'second'})


def test_the_published_recipe_has_the_published_values():
    config = resolve({'recipe': 'published', 'dataset': 'x'})
    assert config == Config(recipe='published', dataset='x')
    assert (config.lr, config.localization_weight, config.tta, config.refine) == (
        5e-5, 0, 'none', False)
    second = resolve({'recipe': 'published', 'generation': 'second', 'dataset': 'ISIC'})
    assert (second.ch, second.iteration, second.cam_weight, second.clear_corners) == (
        54, 7000, 1400, True)


def test_the_advanced_options_come_last():
    assert GROUPS[0] == 'main options' and GROUPS[-1] == ADVANCED and 'advanced' in ADVANCED
