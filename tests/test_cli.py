"""The command line: whole runs, what they write, help, and what bad input gets."""
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import helpers
import main
from config import GROUPS, OPTIONS, PHASES
from helpers import ONLY_MASKS, STAGE_1, TINY_FLAGS, assert_one_line_error, names, run_here

RUN = [*TINY_FLAGS, *STAGE_1, '--batch_size', 1, '--save_freq', 2, '--print_freq', 2]


def test_train_then_test_as_processes_of_their_own(places):
    trained = helpers.command(*places.flags, *RUN, '--iteration', 5, '--keep_checkpoints', 1)
    assert trained.returncode == 0, trained.stderr
    results = places.results
    assert names(results / 'model1') == ['Tiny_params_0000005.pt', 'best.pt']
    assert names(results / 'img1') == [f'A2B_000000{i}.png' for i in (2, 4, 5)]
    assert (results / 'log1' / 'curves.png').is_file()
    rows = helpers.read_csv(results / 'log1' / 'losses.csv')
    assert [row['iteration'] for row in rows] == [*'12345']
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())
    val = helpers.read_csv(results / 'log1' / 'val.csv')
    assert [row['iteration'] for row in val] == [*'245']
    best = torch.load(results / 'model1' / 'best.pt', weights_only=True)
    assert best['best_ja'] == pytest.approx(max(float(row['JA']) for row in val), rel=1e-4)

    # images of several sizes; what is written has each one's own
    helpers.draw_images(places.data / 'testA', ['wide.jpg'], size=(90, 50), bright_square=True)
    tested = helpers.command(*places.flags, '--phase', 'test')
    assert tested.returncode == 0, tested.stderr
    assert 'best.pt' in tested.stdout and 'mean' in tested.stdout
    folder = results / 'test1' / 'best'
    for kind in ('mask', 'segmentation', 'heatmap', 'translation', 'overlay'):
        assert names(folder / kind) == ['t0.png', 't1.png', 't2.png', 'wide.png'], kind
        assert Image.open(folder / kind / 't0.png').size == (40, 36)
        assert Image.open(folder / kind / 'wide.png').size == (90, 50)
    assert names(folder / 'translation_B') == ['n0.png']
    metrics = helpers.read_json(folder / 'metrics.json')
    assert (metrics['dataset'], metrics['stage'], metrics['images']) == ('Tiny', 1, 2)
    assert metrics['checkpoint'].endswith('best.pt')
    rows = helpers.read_csv(folder / 'metrics.csv')
    for name, row, per_image in zip(('t0', 't1'), rows, metrics['per_image'], strict=True):
        segmentation, label = (helpers.read_pixels(path) > 0 for path in (
            folder / 'segmentation' / f'{name}.png',
            places.data / 'test' / 'labels' / f'{name}_segmentation.png'))
        ja = 100 * (segmentation & label).sum() / (segmentation | label).sum()
        assert row['name'] == per_image['name'] == name
        assert float(row['JA']) == pytest.approx(ja) == pytest.approx(per_image['JA'])
    assert metrics['mean']['JA'] == pytest.approx(np.mean([float(row['JA']) for row in rows]))
    kinds = re.search(r'"kinds": (\[.*?\])', (folder / 'report.html').read_text('utf-8'))[1]
    assert [kind['name'] for kind in json.loads(kinds)] == [
        'image', 'heatmap', 'soft mask', 'segmentation', 'label', 'translation', 'overlay']

    # a second test leaves nothing of the first behind
    (places.data / 'testA' / 'wide.jpg').unlink()
    places.done('--phase', 'test', *ONLY_MASKS)
    assert names(folder / 'mask') == ['t0.png', 't1.png', 't2.png']
    assert not (folder / 'overlay').exists() and names(folder.parent) == ['best']


def test_second_generation_masks_only(places, monkeypatch):
    monkeypatch.setattr('runtime.preflight.has_bfloat16', lambda kind: True)  # slow, but it runs
    shutil.rmtree(places.data / 'test')
    shutil.rmtree(places.data / 'val')
    (places.data / 'testA').rename(places.data / 'images')
    (places.data / 'testA').mkdir()
    (places.data / 'images').rename(places.data / 'testA' / 'images')  # the other layout
    places.done(*RUN, '--generation', 'second', '--light', False, '--amp', True, '--iteration', 2)
    assert 'no labels' in places.done('--phase', 'test', *ONLY_MASKS)
    folder = places.results / 'test1' / 'Tiny_params_0000002'
    assert names(folder) == ['heatmap', 'mask', 'metrics.csv', 'metrics.json', 'overview.png',
                             'segmentation']
    assert helpers.read_json(folder / 'metrics.json')['images'] == 0


def test_a_new_run_leaves_the_earlier_one_whole(stage_1):
    stage_1.done('--phase', 'test', *ONLY_MASKS)
    stage_1.done(*RUN, '--iteration', 2, '--seed', 1)
    earlier, = stage_1.results.glob('earlier_*')
    assert names(earlier) == ['img1', 'log1', 'model1', 'test1']
    assert names(earlier / 'model1') == names(stage_1.results / 'model1')


def shown_options(help_text: str) -> list[str]:
    """The options that a help text describes, in its order."""
    return re.findall(r'^  --(\w+)', help_text, re.MULTILINE)


def test_help_shows_every_option_the_main_ones_first_and_the_advanced_last():
    shown = run_here('--help')
    assert shown.returncode == 0 and not shown.stderr
    text = shown.stdout
    examples = re.findall(r'^  python main\.py .*--phase (\w+)', text.split('main options:')[0],
                          re.MULTILINE)
    assert examples == ['train', 'test', 'predict']
    titles = re.findall(r'^(\w[^\n]*):$', text, re.MULTILINE)
    assert [title for title in titles if title in GROUPS] == list(GROUPS)
    assert titles[-1].startswith('advanced')
    assert sorted(shown_options(text)) == sorted(OPTIONS)
    assert text.count('(default:') == len(OPTIONS)
    published = ('phase stage light dataset iteration batch_size print_freq save_freq decay_flag '
                 'lr weight_decay adv_weight cycle_weight identity_weight cam_weight recon_weight '
                 'ch n_res n_dis img_size img_ch result_dir device benchmark_flag resume').split()
    assert set(published) <= set(shown_options(text))


@pytest.mark.parametrize('phase', PHASES)
def test_help_of_one_phase_shows_its_options_alone(phase):
    shown = shown_options(run_here('--phase', phase, '--help').stdout)
    assert shown == shown_options(run_here(f'--phase={phase}', '--help').stdout)
    assert set(shown) == {name for name, option in OPTIONS.items()
                          if phase in option.metadata['phases']}
    if phase == 'predict':
        assert {'input', 'output', 'presence_threshold'} <= set(shown)
        assert not {'source', 'cycle_weight'} & set(shown)


MEANT = {'learning_rate': 'lr', 'learning-rate': 'lr', 'epochs': 'iteration',
         'refine': 'postprocess', 'turn': 'rotate', 'presence': 'presence_threshold',
         'keep': 'keep_checkpoints', 'preset': 'profile', 'input_dir': 'input', 'colr': None,
         'iteratoin': 'iteration', 'cycle': 'cycle_weight'}


def test_a_wrong_flag_names_the_right_one():
    for written, meant in MEANT.items():
        for arguments in ([f'--{written}', '3'], [f'--{written}=3']):
            result = run_here(*arguments)
            assert_one_line_error(result, f'--{written}', '--help')
            assert re.findall(r'did you mean --(\w+)\?', result.stderr) == [meant] * bool(meant)


@pytest.mark.parametrize('phase, written, meant', [
    ('predict', 'image_dir', 'input'), ('train', 'image_path', 'data_root'),
    ('predict', 'threshold', 'presence_threshold'), ('predict', 'thresh', 'presence_threshold'),
    ('predict', 'output_dir', 'output'), ('train', 'save_path', 'result_dir'),
    ('train', 'random_seed', 'seed'), ('train', 'total_iters', 'iteration'),
    ('train', 'save_every', 'save_freq'), ('prepare', 'src', 'source'),
    *((phase, word, '') for phase in ('', *PHASES)
      for word in ('segment', 'target', 'height', 'project', 'student'))])
def test_a_word_is_taken_for_an_option_of_its_phase(phase, written, meant):
    assert main.similar_option(written, phase) == meant


def test_every_unknown_flag_has_its_proposal():
    result = run_here('--learning_rate', 3, '--project', '--epochs', 4)
    assert_one_line_error(result, 'did you mean --lr for --learning_rate, --iteration for --epochs')
    for dash in '–—':
        assert_one_line_error(run_here(f'{dash}dataset', 'x'), 'did you mean --dataset?', 'hyphens')
    for word, phase in (('validate', 'val'), ('inference', 'predict'), ('Segment', 'predict')):
        assert_one_line_error(run_here('--phase', word), f'did you mean {phase}?')


@pytest.mark.parametrize('flag, value, parts', [
    ('--light', 'maybe', []), ('--iteration', 0, ['at least 1']), ('--img_size', 130, ['multiple']),
    ('--phase', 'dream', ['train']), ('--dataset', '../etc', []), ('--lr', 'nan', []),
    ('--device', 'gpu', ['unknown']),
    pytest.param('--device', 'cuda', ['--device cpu'], marks=pytest.mark.skipif(
        torch.cuda.is_available(), reason='this machine has CUDA'))])
def test_bad_flags(flag, value, parts, places):
    assert_one_line_error(places.run(flag, value), flag, value, *parts)
    assert not places.results.exists()


def test_bad_places_and_data_in_training(places, tmp_path, monkeypatch):
    places.results.parent.write_text('a file')
    assert_one_line_error(places.run(*RUN), places.results.parent, '--result_dir')
    places.results.parent.unlink()
    monkeypatch.chdir(tmp_path)  # from elsewhere the program still finds its own data
    assert_one_line_error(run_here('--dataset', 'absent', '--phase', 'train'),
                          helpers.PROJECT / 'dataset' / 'absent', 'no such folder', 'trainA/')
    kept = places.results / 'model1' / 'Tiny_params_0000001.pt'
    kept.parent.mkdir(parents=True)
    kept.write_text('an earlier run')
    helpers.draw_labels(places.data / 'val' / 'labels', ['v1'], size=(20, 36))
    assert_one_line_error(places.run(*RUN), 'v1_segmentation.png', '20×36', '40×36')
    shutil.rmtree(places.data / 'trainB')
    assert_one_line_error(places.run(*RUN), 'Tiny/trainB', 'no such folder', 'trainA/ (disease)',
                          'testA/')
    shutil.rmtree(places.data / 'trainA')
    (places.data / 'trainA').mkdir()
    assert_one_line_error(places.run(*RUN), 'Tiny/trainA', 'holds no images', 'trainB/ (normal)')
    assert kept.read_text() == 'an earlier run'


def test_bad_test_input_and_flags_that_contradict_a_run(stage_1, tmp_path):
    test, resume = ['--phase', 'test', *ONLY_MASKS], ['--stage', 1, '--resume', '--iteration', 4]
    (tmp_path / 'text.pt').write_text('text')
    for name in ('no.pt', 'text.pt'):
        assert_one_line_error(stage_1.run(*test, '--checkpoint', tmp_path / name), tmp_path / name)
    assert_one_line_error(stage_1.run(*test, '--ch', 8), '--ch 8', 'ch 4')
    assert_one_line_error(stage_1.run(*resume, '--n_res', 2), '--n_res 2', 'n_res 1')
    assert_one_line_error(stage_1.run(*resume, '--checkpoint', 'x.pt'), '--checkpoint', '--resume')
    shutil.rmtree(stage_1.results / 'model1')
    assert_one_line_error(stage_1.run(*test), 'best.pt', 'Tiny_params_*.pt', '--checkpoint')
