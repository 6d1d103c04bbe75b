"""Our recipe: which stages a command goes through, stage 0 before 1, choosing without labels."""
import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import checkpoint as checkpoints
import settings as presets
from conftest import STAGE_1, TINY_FLAGS, Places, assert_one_line_error
from main import plan
from selection import LabelFreeScore


@pytest.fixture
def places(data_root, tmp_path, monkeypatch):
    """Places where stages 0 and 2 are as small as stage 1 is by its flags."""
    small = {'ch': 4, 'img_size': 32, 'iteration': 2, 'batch_size': 2, 'save_freq': 1}
    for defaults in (presets.LOCATOR_DEFAULTS, presets.STUDENT_DEFAULTS):
        for name, value in small.items():
            monkeypatch.setitem(defaults, name, value)
    return Places(data_root, tmp_path)


RUN = ['--phase', 'train', *TINY_FLAGS, '--batch_size', 1, '--iteration', 2]


def stages(**flags):
    return [(run.get('phase', 'train'), run['stage']) for run in plan(flags)]


def test_which_runs_a_command_stands_for():
    train = [('train', 0), ('train', 1), ('train', 2), ('val', 2)]
    assert stages() == stages(phase='train') == stages(scheme='published') == train
    assert stages(stage=1) == train[:2]
    assert stages(stage=1, location_weight=0.0) == [('train', 1)]
    assert stages(stage=1, teacher='x.pt') == [('train', 1)]
    assert stages(stage=0) == [('train', 0)] and stages(stage=2) == [('train', 2)]
    assert stages(recipe='published') == [('train', 1), ('train', 2), ('val', 2)]
    assert stages(recipe='published', generation='second') == [('train', 1), ('val', 1)]
    assert stages(phase='test', dataset='none', result_dir='nowhere') == [('test', 1)]


def test_flags_of_one_stage_stay_with_it():
    flags = {'ch': 62, 'iteration': 9, 'scheme': 'published', 'seed': 5, 'save_freq': 3}
    zero, one, two, val = plan(flags)
    assert (zero['seed'], zero['save_freq']) == (5, 3) and not {'ch', 'iteration'} & zero.keys()
    assert (one['ch'], one['iteration']) == (62, 9) and 'scheme' not in one
    assert two['scheme'] == 'published' and not {'ch', 'iteration'} & two.keys()
    assert not {'ch', 'seed'} & val.keys()


def test_train_then_test_without_further_flags(places):
    out = places.done(*RUN)
    results = places.results
    assert [out.index(f'--- stage {stage}') for stage in (0, 1, 2)] == sorted(
        out.index(f'--- stage {stage}') for stage in (0, 1, 2))
    assert checkpoints.read(results / 'model0' / 'best.pt').settings['scheme'] == 'locator'
    # the locator that taught stage 1 is kept with it; its maps are files
    assert checkpoints.read(results / 'model1' / 'teacher.pt').settings['stage'] == 0
    assert len(list((results / 'location_trainA').glob('a*.png'))) == 5
    with open(results / 'log1' / 'losses.csv') as file:
        rows = list(csv.DictReader(file))
    assert all(float(row['location']) > 0 and float(row['normal_mask']) > 0 for row in rows)
    chosen = json.loads((results / 'model2' / 'val.json').read_text())['best']
    out = places.done('--phase', 'test')
    assert 'model2/best.pt' in out and f'post-processing: {chosen["rule"]}' in out
    assert (results / 'test2' / 'best' / 'segmentation' / 't0.png').is_file()
    places.done('--phase', 'test', '--stage', 1)  # needs no locator
    places.done('--phase', 'test', '--stage', 0)
    assert len(list((results / 'test0' / 'best' / 'mask').glob('*.png'))) == 3

    # stage 1 anew keeps the locator, and then is what a test takes
    before = (results / 'model0' / 'best.pt').stat().st_mtime_ns
    out = places.done(*RUN, '--stage', 1)
    assert 'already is at iteration 2' in out
    assert (results / 'model0' / 'best.pt').stat().st_mtime_ns == before
    assert 'model1/best.pt' in places.done('--phase', 'test')


def test_stage_1_resumes_with_the_locator_it_began_with(places):
    places.done(*RUN, '--stage', 1, '--save_freq', 1)
    shutil.rmtree(places.results / 'model0')
    last = places.results / 'model1' / 'Tiny_params_0000002.pt'
    whole = torch.load(last, weights_only=True)
    last.unlink()
    out = places.done('--phase', 'train', '--stage', 1, '--resume', 'True')
    assert 'model1/teacher.pt' in out and '--- stage 0' not in out
    again = torch.load(last, weights_only=True)
    assert all(torch.equal(whole['genA2B'][key], again['genA2B'][key]) for key in whole['genA2B'])


def test_what_teaches_stage_2_lies_between_stage_1_and_the_locator(places):
    places.done(*RUN, '--stage', 1)

    def taught(share):
        places.done('--phase', 'pseudo_mask', '--location_share', share)
        return np.asarray(Image.open(places.results / 'syn_trainA' / 'a0.png'), float)

    location = np.asarray(Image.open(places.results / 'location_trainA' / 'a0.png'), float)
    alone = taught(0)
    assert (taught(1) == location).all() and not (alone == location).all()
    assert np.abs(taught(0.5) - (alone + location) / 2).max() <= 0.5


def test_a_student_may_go_on_from_the_locator(places):
    """The preset of ISIC, here asked for; where no locator taught it starts anew."""
    places.done(*RUN, '--preset', 'ISIC')
    made = checkpoints.read(places.results / 'model2' / 'best.pt').settings
    assert (made['student'], made['preset'], made['cut']) == ('locator', 'ISIC', True)
    places.done('--phase', 'test')
    places.done('--phase', 'train', '--stage', 2, '--resume', 'True', '--iteration', 3)

    none = places.run('--phase', 'train', '--recipe', 'published', '--stage', 1, *TINY_FLAGS,
                      '--iteration', 1, '--batch_size', 1)
    assert none.returncode == 0, none.stderr
    places.done('--phase', 'train', '--stage', 2, '--preset', 'ISIC')
    assert checkpoints.read(places.results / 'model2' / 'best.pt').settings['student'] == 'unet'
    assert_one_line_error(places.run('--phase', 'train', '--stage', 2, '--student', 'locator'),
                          '--student', '--teacher')
    assert_one_line_error(places.run('--phase', 'train', '--stage', 2, '--student', 'locator', '--ch', 8,
                                     '--teacher', places.results / 'model0' / 'best.pt'),
                          'shape', '--ch')


def test_the_published_recipe_has_no_locator(places):
    places.done(*RUN, *STAGE_1)
    assert not (places.results / 'model0').exists()
    with open(places.results / 'log1' / 'losses.csv') as file:
        assert all(float(row['location']) == float(row['normal_mask']) == 0
                   for row in csv.DictReader(file))
    assert 'post-processing: otsu' in places.done('--phase', 'test')


def test_teachers_of_the_wrong_stage(places):
    places.done(*RUN, *STAGE_1)
    one = places.results / 'model1' / 'best.pt'
    assert_one_line_error(places.run(*RUN, '--stage', 1, '--teacher', one), one, 'stage 0')
    assert_one_line_error(places.run(*RUN, '--teacher', one), '--teacher', '--stage')


def test_without_val_labels_the_best_is_chosen_by_the_label_free_score(places):
    shutil.rmtree(places.data / 'val')
    out = places.done(*RUN, '--save_freq', 1, '--keep', 9)
    assert out.count('label-free score') == 4  # two checkpoints of stages 1 and 2 each
    for stage in (1, 2):
        with open(places.results / f'log{stage}' / 'score.csv') as file:
            scores = {row['iteration']: float(row['score']) for row in csv.DictReader(file)}
        folder = places.results / f'model{stage}'
        best = max(scores, key=scores.get)
        assert (folder / 'best.pt').samefile(folder / f'Tiny_params_{int(best):07d}.pt')
        assert checkpoints.read(folder / 'best.pt').best_score == pytest.approx(scores[best], 1e-4)
    assert not (places.results / 'log2' / 'val.csv').read_text().count('\n') > 1
    assert 'post-processing: fit' in places.done('--phase', 'test')


class Bright(torch.nn.Module):
    """A locator that finds evidence wherever a picture is bright."""

    def evidence_over_views(self, image):
        return 8 * torch.nn.functional.avg_pool2d(image.mean(1, keepdim=True), 4)


def test_the_label_free_score_prefers_the_lesion_itself(tmp_path):
    """Right beats too small, too large, elsewhere, nothing and everything."""
    rng = np.random.default_rng(0)
    lesion = np.zeros((64, 64), bool)
    lesion[20:36, 24:44] = True
    image = rng.normal(50, 5, (64, 64, 3))
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(tmp_path / 'normal.png')
    image[lesion] += 170
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(tmp_path / 'disease.png')
    score = LabelFreeScore(Bright(), (64, 64), torch.device('cpu'))
    score.learn_normal([tmp_path / 'normal.png'])
    masks = {'small': lesion & (np.arange(64)[:, None] < 26), 'elsewhere': np.roll(lesion, 24, 0),
             'none': np.zeros_like(lesion), 'all': np.ones_like(lesion)}
    large = lesion.copy()
    large[12:44, 16:52] = True
    scores = {name: score(tmp_path / 'disease.png', mask)
              for name, mask in (masks | {'large': large, 'right': lesion}).items()}
    assert max(scores, key=scores.get) == 'right' and scores['right'] > 80
    assert scores['none'] == pytest.approx(0, abs=0.5) and scores['all'] < 5
