"""The options: how each is declared, their bounds, presets and precedence, and the checkpoint's."""
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest

from config import ADVANCED, ARCHITECTURE, GROUPS, OPTIONS, PHASES, SAVED, Config, preset, resolve
from utils import UserError


def test_every_option_is_declared_in_full():
    for name, option in OPTIONS.items():
        rules = option.metadata
        assert rules['help'] and rules['help'] == rules['help'].strip(), name
        assert rules['group'] in GROUPS, name
        assert rules['phases'] and set(rules['phases']) <= set(PHASES), name
        assert not rules['choices'] or option.default in rules['choices'], name
        assert not rules['architecture'] or rules['saved'], name
    # what a word stands for follows from the number of phases
    synonyms = [(word, len(option.metadata['phases'])) for option in OPTIONS.values()
                for word in option.metadata['synonyms']]
    assert len(synonyms) == len(set(synonyms)) and not set(dict(synonyms)) & OPTIONS.keys()
    assert GROUPS[0] == 'main options' and GROUPS[-1] == ADVANCED
    assert {*ARCHITECTURE, 'stage', 'recipe', 'dataset', 'profile'} < set(SAVED)
    assert not {'data_root', 'result_dir', 'checkpoint', 'device', 'phase', 'teacher'} & set(SAVED)


def values_outside() -> Iterator[tuple[str, Any, str]]:
    """For each bound and list of choices: option, a value outside, and what the message says."""
    for name, option in OPTIONS.items():
        rules, step = option.metadata, 0.001 if option.type is float else 1
        if rules['choices']:
            outside = 99 if option.type is int else 'no_such_choice'
            yield name, outside, str(rules['choices'][-1])
            continue
        for bound, words, outside in (('at_least', 'at least', rules['at_least'] - step),
                                      ('above', 'above', rules['above']),
                                      ('at_most', 'at most', rules['at_most'] * 2 + step)):
            if math.isfinite(rules[bound]):
                yield name, outside, f'{words} {rules[bound]:g}'
        for value in (math.nan, math.inf) if option.type is float else ():
            yield name, value, 'finite'


def test_a_value_outside_is_refused_with_one_line():
    cases = list(values_outside())
    assert len(cases) > 80
    for name, value, part in cases:
        with pytest.raises(UserError) as caught:
            resolve({name: value})
        message = str(caught.value)
        assert message.startswith(f'--{name} {value}: ') and '\n' not in message, message
        assert part in message, message
    for name, option in OPTIONS.items():  # the bounds themselves are allowed
        for bound in (option.metadata['at_least'], option.metadata['at_most']):
            if math.isfinite(bound) and name != 'img_size':
                resolve({'img_size': 8192, name: option.type(bound)})  # enough for any n_dis


def test_sizes_of_images():
    for size in (130, (96, 130), 92, 8196, (256, 8200)):
        with pytest.raises(UserError, match='img_size.*(multiple of 4 and at least 96|most 8192)'):
            resolve({'img_size': size})
    assert resolve({'img_size': 96}).size == (96, 96)
    assert resolve({'img_size': (128, 96)}).size == (128, 96)
    # the smallest: of discriminators in training, of a student, of a localizer
    for flags, smallest in (({'n_dis': 4}, 24), ({'phase': 'test'}, 8), ({'stage': 2}, 32),
                            ({'stage': 0}, 16)):
        assert resolve({'img_size': smallest, **flags}).size == (smallest, smallest)
        with pytest.raises(UserError, match=f'at least {smallest}'):
            resolve({'img_size': smallest - 4, **flags})


def test_the_profile_follows_the_name_of_the_data_set():
    for stage in (0, 1, 2):
        by_name = preset(stage=stage, dataset='ISIC')
        assert by_name == preset(stage=stage, dataset='other', profile='dermoscopy')
        assert by_name != preset(stage=stage, dataset='other')
        assert preset(stage=stage, dataset='BraTS') == preset(stage=stage, profile='brain_mri')
        assert preset(stage=stage, dataset='ISIC', profile='generic') == preset(stage=stage)
    isic = resolve({'dataset': 'ISIC'})
    other = resolve({'dataset': 'other', 'profile': 'dermoscopy'})
    assert dataclasses.replace(other, dataset='ISIC', profile='') == isic
    assert isic.contrast_jitter and isic.tta == 'flips' and isic.keep_components == 'central'


def test_flags_win_over_checkpoints_over_what_is_inherited_over_presets():
    assert preset(stage=2)['lr'] == 1e-3  # of presets the later one: not 1e-4 of the recipe
    assert preset(stage=2, dataset='phantom')['iteration'] == 100
    sources = {'flags': {'stage': 2, 'dataset': 'x'}, 'saved': {}, 'inherited': {}}
    assert resolve(**sources).lr == 1e-3
    for source, value in (('inherited', 0.1), ('saved', 0.2), ('flags', 0.3)):
        sources[source] = sources[source] | {'lr': value}
        assert resolve(**sources).lr == value
    # of the teacher, what it trained is not taken over
    kept = resolve({'stage': 2, 'dataset': 'x'}, inherited={
        'stage': 1, 'dataset': 'y', 'recipe': 'published', 'profile': 'dermoscopy', 'img_ch': 1})
    assert (kept.stage, kept.dataset, kept.recipe, kept.profile, kept.img_ch) == (
        2, 'x', 'ours', '', 1)


def test_a_quick_run_has_a_tenth_of_the_length():
    for situation in ({'stage': 0}, {'stage': 2}, {'recipe': 'published'}, {'dataset': 'phantom'}):
        whole, quick = (resolve({'dataset': 'x', **situation, 'quick': value})
                        for value in (False, True))
        for name in ('iteration', 'save_freq', 'print_freq'):
            assert getattr(quick, name) == getattr(whole, name) // 10, (situation, name)
        assert dataclasses.replace(whole, quick=True, iteration=quick.iteration,
                                   save_freq=quick.save_freq, print_freq=quick.print_freq) == quick
    assert resolve({'quick': True, 'iteration': 7}).iteration == 7
    # a resumed run keeps its length, and another length is another run
    saved = resolve({'quick': True, 'stage': 0}).saved_values()
    assert resolve({}, saved).iteration == saved['iteration']
    with pytest.raises(UserError, match='--quick False contradicts x.pt'):
        resolve({'quick': False}, saved, 'x.pt')
    # the published stage 2 inherits the length of stage 1, but not that of a quick one
    published = {'stage': 2, 'recipe': 'published', 'dataset': 'x'}
    for of_teacher, flag, expected in ((False, False, 77), (True, True, 77), (True, False, 1500),
                                       (False, True, 150)):
        assert resolve(published | {'quick': flag}, inherited={
            'iteration': 77, 'quick': of_teacher}).iteration == expected


def test_a_flag_may_not_contradict_the_networks_of_a_file():
    full = Config(ch=8, stage=1, light=False).saved_values()
    for name, value in {'generation': 'second', 'ch': 9, 'n_res': 5, 'light': True, 'n_dis': 5,
                        'img_size': 128, 'img_ch': 1, 'stage': 2}.items():
        both = rf'--{name} {value} contradicts x\.pt.* {name} {full[name]};'
        with pytest.raises(UserError, match=both):
            resolve({name: value}, full, 'x.pt')
    light = full | {'light': True}
    assert resolve({'ch': 8, 'lr': 0.1, 'img_size': 128}, light, 'x.pt').lr == 0.1
    # a localizer has no generator, so that flags of one mean nothing
    assert resolve({'n_res': 2}, Config(stage=0).saved_values(), 'x.pt').n_res == 2


def test_the_published_recipe_has_the_published_values():
    config = resolve({'recipe': 'published', 'dataset': 'x'})
    assert config == Config(recipe='published', dataset='x')
    assert (config.lr, config.localization_weight, config.tta, config.default_rule) == (
        5e-5, 0, 'none', 'otsu')
    second = resolve({'recipe': 'published', 'generation': 'second', 'dataset': 'ISIC'})
    assert (second.ch, second.iteration, second.cam_weight, second.clear_corners) == (
        54, 7000, 1400, True)
