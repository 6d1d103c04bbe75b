"""Our recipe: all stages of one command, stage 0 before 1, a student, choosing without labels."""
import shutil

import pytest
import torch

import checkpoint as checkpoints
from config import DEFAULT_ENCODER
from helpers import ONLY_MASKS, TINY_FLAGS, assert_one_line_error, names, read_csv, read_json, same

RUN = ['--phase', 'train', *TINY_FLAGS, '--batch_size', 1, '--iteration', 2]


def test_localizer_and_student_of_one_command(places, small_stages):
    out = places.done(*RUN, '--save_freq', 1, '--quick', '--cycle_weight', 3)
    assert 'ignored here: --n_res (of stage 1), --n_dis (of stage 1), --cycle_weight (of' in out
    assert ('to come: stage 0 (localizer), 1 iterations; stage 2 (student), 2 iterations; val, '
            in out)
    assert out.index('stage 1 ') < out.index('--- stage 0') < out.index('--- stage 2: what val')
    assert out.splitlines()[-2:] == [f'open {places.results}/model2/report.html',
                                     'next: python main.py --phase test ' + ' '.join(
                                         map(str, places.flags[:6]))]
    assert f'teacher: {places.results}/model0/best.pt' in out
    assert not (places.results / 'model1').exists()
    config = checkpoints.read(places.results / 'model2' / 'best.pt').config
    assert (f'pseudo-labels: {config["pseudo_label_rule"]} (val JA of 2 labeled images, percent: '
            'color_edges' in out)
    tested = places.done('--phase', 'test', '--rounds', 3)
    assert 'ignored here: --rounds (of --phase train)\n' in tested and 'model2/best.pt' in tested
    assert 'stage 2 (student): the stage trained last; --stage 0 uses another\n' in tested
    assert tested.splitlines()[-1] == f'open {places.results}/test2/best/report.html'
    # what a quick run made says so
    assert 'quick' in tested and read_json(places.results / 'model2' / 'val.json')['quick']
    for report in ('model2/report.html', 'test2/best/report.html', 'test2/best/metrics.json'):
        assert 'trained with --quick' in (places.results / report).read_text('utf-8')
    # an earlier stage 1 does not teach the student of a run of all stages
    (places.results / 'model1').mkdir()
    shutil.copy(places.results / 'model0' / 'best.pt', places.results / 'model1' / 'best.pt')
    assert f'teacher: {places.results}/model0/best.pt' in places.done(*RUN)


def test_all_stages_then_test_without_flags(all_stages):
    results = all_stages.results
    for stage, name in enumerate(('localizer', 'genA2B', 'ema')):
        best = checkpoints.read(results / f'model{stage}' / 'best.pt')
        assert best.config['stage'] == stage and name in best.networks
    # the localizer that taught stage 1 is kept with it; its maps are files
    assert checkpoints.read(results / 'model1' / 'teacher.pt').config['stage'] == 0
    assert names(results / 'model2') == ['Tiny_params_0000001.pt', 'Tiny_params_0000002.pt',
                                         'best.pt', 'localizer.pt', 'report.html', 'teacher.pt',
                                         'val.json']
    assert len(list((results / 'localization_trainA').glob('a*.png'))) == 5
    for row in read_csv(results / 'log1' / 'losses.csv'):
        assert float(row['localization']) > 0 and float(row['normal_mask']) > 0

    rule = read_json(results / 'model2' / 'val.json')['best']['rule']
    out = all_stages.done('--phase', 'test')
    assert 'model2/best.pt' in out and f'post-processing: {rule} (chosen on val)\n' in out
    assert 'quick' not in out
    assert (results / 'test2' / 'best' / 'segmentation' / 't0.png').is_file()
    all_stages.done('--phase', 'test', '--stage', 1)  # needs no localizer
    all_stages.done('--phase', 'test', '--stage', 0)
    assert names(results / 'test0' / 'best' / 'mask') == ['t0.png', 't1.png', 't2.png']


def test_stage_1_anew_keeps_the_localizer_and_then_is_what_a_test_takes(all_stages, small_stages):
    localizer = all_stages.results / 'model0' / 'best.pt'
    before = localizer.stat().st_mtime_ns
    out = all_stages.done(*RUN, '--stage', 1, '--seed', 1)
    assert 'stage 1 learns from the localization maps of stage 0' in out
    assert 'stage 0 (localizer), done already; stage 1 (label transfer), 2 iterations\n' in out
    assert 'already is at iteration 2' in out
    assert f'stage 2 is stale: the networks in {all_stages.results}/model2 learned from' in out
    assert localizer.stat().st_mtime_ns == before
    assert 'model1/best.pt' in all_stages.done('--phase', 'test', *ONLY_MASKS)


def test_stage_1_resumes_with_the_localizer_it_began_with(all_stages):
    shutil.rmtree(all_stages.results / 'model0')
    last = all_stages.results / 'model1' / 'Tiny_params_0000002.pt'
    whole = torch.load(last, weights_only=True)
    last.unlink()
    out = all_stages.done('--phase', 'train', '--stage', 1, '--resume', 'True')
    assert 'model1/teacher.pt' in out and '--- stage 0' not in out
    assert same(whole['genA2B'], torch.load(last, weights_only=True)['genA2B'])


def test_a_student_with_a_pretrained_encoder(all_stages, small_stages):
    """Trained, tested, resumed, exported; and what is said where there are no weights for it."""
    train = ['--phase', 'train', '--stage', 2]
    all_stages.done(*train, '--encoder', DEFAULT_ENCODER, '--profile', 'dermoscopy')
    config = checkpoints.read(all_stages.results / 'model2' / 'best.pt').config
    assert (config['encoder'], config['profile'], config['contrast_jitter']) == (
        DEFAULT_ENCODER, 'dermoscopy', True)
    all_stages.done('--phase', 'test', '--stage', 2)
    all_stages.done(*train, '--resume', 'True', '--iteration', 3)
    all_stages.done('--phase', 'export', '--stage', 2, '--tta', 'none')  # each flip takes long
    broken = all_stages.results / 'broken.pth'
    torch.save({'conv_stem.weight': torch.zeros(1)}, broken)
    for content, words in ((None, ['another network']), (b'text', ['cannot be read'])):
        broken.write_bytes(content or broken.read_bytes())
        assert_one_line_error(all_stages.run(*train, '--encoder', DEFAULT_ENCODER,
                                             '--encoder_weights', broken), *words)
    assert_one_line_error(all_stages.run(*train, '--encoder', 'efficientnet'), 'efficientnet_b0')


def test_the_published_recipe_has_no_localizer(stage_1, small_stages):
    assert not (stage_1.results / 'model0').exists()
    for row in read_csv(stage_1.results / 'log1' / 'losses.csv'):
        assert float(row['localization']) == float(row['normal_mask']) == 0
    assert 'post-processing: otsu' in stage_1.done('--phase', 'test', *ONLY_MASKS)


def test_without_val_labels_the_best_is_chosen_by_the_label_free_score(places, small_stages):
    shutil.rmtree(places.data / 'val')
    out = places.done(*RUN, '--save_freq', 1, '--keep_checkpoints', 9)
    out += places.done(*RUN, '--save_freq', 1, '--keep_checkpoints', 9, '--stage', 1)
    assert out.count(': label-free score') == 4  # two checkpoints of stages 2 and 1 each
    assert '(label-free score of −100 to 100 on 5 images of trainA, no labels: color_edges' in out
    for stage in (1, 2):
        scores = {row['iteration']: float(row['score'])
                  for row in read_csv(places.results / f'log{stage}' / 'score.csv')}
        folder = places.results / f'model{stage}'
        best = max(scores, key=scores.get)
        assert (folder / 'best.pt').samefile(folder / f'Tiny_params_{int(best):07d}.pt')
        assert checkpoints.read(folder / 'best.pt').best_score == pytest.approx(scores[best], 1e-4)
    assert not read_csv(places.results / 'log2' / 'val.csv')
    rule = checkpoints.read(places.results / 'model2' / 'best.pt').config['pseudo_label_rule']
    test = places.done('--phase', 'test', '--stage', 2, *ONLY_MASKS)
    assert f'post-processing: {rule} (the rule of its pseudo-labels, since --phase val has' in test
