"""The command line: whole runs, what they write, help, and what bad input gets."""
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import helpers
from config import GROUPS, OPTIONS, PHASES
from helpers import PROJECT, STAGE_1, TINY_FLAGS, assert_one_line_error, command, names, run_here

RUN = [*TINY_FLAGS, *STAGE_1, '--batch_size', 1, '--save_freq', 2, '--print_freq', 2]
ONLY_MASKS = ['--save_visuals', 'False']


def test_train_then_test_as_processes_of_their_own(places):
    trained = command(*places.flags, *RUN, '--iteration', 5, '--keep_checkpoints', 1)
    assert trained.returncode == 0, trained.stderr
    results = places.results
    assert names(results / 'model1') == ['Tiny_params_0000005.pt', 'best.pt']
    assert names(results / 'img1') == [f'A2B_000000{i}.png' for i in (2, 4, 5)]
    assert (results / 'log1' / 'curves.png').is_file()
    rows = helpers.read_csv(results / 'log1' / 'losses.csv')
    assert [row['iteration'] for row in rows] == ['1', '2', '3', '4', '5']
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())
    val = helpers.read_csv(results / 'log1' / 'val.csv')
    assert [row['iteration'] for row in val] == ['2', '4', '5']
    best = torch.load(results / 'model1' / 'best.pt', weights_only=True)
    assert best['best_ja'] == pytest.approx(max(float(row['JA']) for row in val), rel=1e-4)

    # images of several sizes; what is written has each one's own
    helpers.draw_images(places.data / 'testA', ['wide.jpg'], size=(90, 50), bright_square=True)
    tested = command(*places.flags, '--phase', 'test')
    assert tested.returncode == 0, tested.stderr
    assert 'best.pt' in tested.stdout and 'mean' in tested.stdout
    folder = results / 'test1' / 'best'
    for kind in ('mask', 'segmentation', 'heatmap', 'translation', 'overlay'):
        assert names(folder / kind) == ['t0.png', 't1.png', 't2.png', 'wide.png'], kind
        assert Image.open(folder / kind / 't0.png').size == (40, 36)
        assert Image.open(folder / kind / 'wide.png').size == (90, 50)
    assert names(folder / 'translation_B') == ['n0.png']
    metrics = json.loads((folder / 'metrics.json').read_text())
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
    assert metrics['mean']['JA'] == pytest.approx(
        np.mean([per_image['JA'] for per_image in metrics['per_image']]))
    kinds = re.search(r'"kinds": (\[.*?\])', (folder / 'report.html').read_text('utf-8'))[1]
    assert [kind['name'] for kind in json.loads(kinds)] == [
        'image', 'heatmap', 'soft mask', 'segmentation', 'label', 'translation', 'overlay']

    # a second test leaves nothing of the first behind
    (places.data / 'testA' / 'wide.jpg').unlink()
    places.done('--phase', 'test', *ONLY_MASKS)
    assert names(folder / 'mask') == ['t0.png', 't1.png', 't2.png']
    assert not (folder / 'overlay').exists() and names(folder.parent) == ['best']


def test_second_generation_masks_only(places):
    shutil.rmtree(places.data / 'test')
    shutil.rmtree(places.data / 'val')
    (places.data / 'testA').rename(places.data / 'images')
    (places.data / 'testA').mkdir()
    (places.data / 'images').rename(places.data / 'testA' / 'images')  # the other layout
    places.done(*RUN, '--generation', 'second', '--light', 'False', '--amp', 'True',
                '--iteration', 2)
    assert 'no labels' in places.done('--phase', 'test', *ONLY_MASKS)
    folder = places.results / 'test1' / 'Tiny_params_0000002'
    assert names(folder) == ['heatmap', 'mask', 'metrics.csv', 'metrics.json', 'overview.png',
                             'segmentation']
    assert json.loads((folder / 'metrics.json').read_text())['images'] == 0


def test_resume_goes_on_as_if_never_stopped(places):
    places.done(*RUN, '--iteration', 4, '--augment')
    last = places.results / 'model1' / 'Tiny_params_0000004.pt'
    whole = torch.load(last, weights_only=True)
    last.unlink()  # as if the run had been killed after its checkpoint at iteration 2
    places.done('--num_workers', 2, '--stage', 1, '--resume', 'True')
    assert helpers.same(whole, torch.load(last, weights_only=True))
    rows = helpers.read_csv(places.results / 'log1' / 'losses.csv')
    assert [row['iteration'] for row in rows] == ['1', '2', '3', '4']
    assert 'already is at iteration 4' in places.done('--stage', 1, '--resume')


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
    examples = re.findall(r'^  python main\.py .*--phase (\w+)',
                          shown.stdout.split('main options:')[0], re.MULTILINE)
    assert examples == ['train', 'test', 'predict']
    titles = re.findall(r'^(\w[^\n]*):$', shown.stdout, re.MULTILINE)
    assert [title for title in titles if title in GROUPS] == list(GROUPS)
    assert titles[-1].startswith('advanced')
    assert sorted(shown_options(shown.stdout)) == sorted(OPTIONS)
    assert shown.stdout.count('(default:') == len(OPTIONS)
    published = ('phase stage light dataset iteration batch_size print_freq save_freq decay_flag '
                 'lr weight_decay adv_weight cycle_weight identity_weight cam_weight recon_weight '
                 'ch n_res n_dis img_size img_ch result_dir device benchmark_flag resume').split()
    assert set(published) <= set(shown_options(shown.stdout))


@pytest.mark.parametrize('phase', PHASES)
def test_help_of_one_phase_shows_its_options_alone(phase):
    shown = shown_options(run_here('--phase', phase, '--help').stdout)
    assert shown == shown_options(run_here(f'--phase={phase}', '--help').stdout)
    assert set(shown) == {name for name, option in OPTIONS.items()
                          if phase in option.metadata['phases']}
    if phase == 'predict':
        assert {'input', 'output', 'presence_threshold'} <= set(shown)
        assert not {'source', 'cycle_weight'} & set(shown)


MEANT = {'learning_rate': 'lr', 'learning-rate': 'lr', 'epochs': 'iteration', 'fit': 'refine',
         'turn': 'rotate', 'presence': 'presence_threshold', 'keep': 'keep_checkpoints',
         'preset': 'profile', 'input_dir': 'input', 'colr': None, 'iteratoin': 'iteration',
         'cycle': 'cycle_weight'}


def test_a_wrong_flag_names_the_right_one():
    for written, meant in MEANT.items():
        for arguments in ([f'--{written}', '3'], [f'--{written}=3']):
            result = run_here(*arguments)
            assert_one_line_error(result, f'--{written}', '--help')
            assert re.findall(r'did you mean --(\w+)\?', result.stderr) == [meant] * bool(meant)


BAD_FLAGS = {
    'unknown flag': (['--colour', '3'], ['--colour']),
    'no boolean': (['--light', 'maybe'], ['--light', 'maybe']),
    'iteration 0': (['--iteration', '0'], ['--iteration 0', 'at least 1']),
    'negative weight': (['--cam_weight', '-1'], ['--cam_weight -1']),
    'odd size': (['--img_size', '130'], ['--img_size 130', 'multiple of 4']),
    'small size': (['--img_size', '92'], ['--img_size 92', 'at least 96']),
    'no such phase': (['--phase', 'dream'], ['dream', 'train']),
    'strange data set': (['--dataset', '../etc'], ['../etc']),
    'two channels': (['--img_ch', '2'], ['--img_ch', '2']),
    'not a number': (['--lr', 'nan'], ['--lr nan']),
    'unknown device': (['--device', 'gpu'], ['--device gpu']),
}


@pytest.mark.parametrize('flags, parts', BAD_FLAGS.values(), ids=BAD_FLAGS)
def test_bad_flags(flags, parts, places):
    assert_one_line_error(places.run(*flags), *parts)
    assert not places.results.exists()


def test_places_that_are_not_there(places, tmp_path, monkeypatch):
    places.results.parent.write_text('a file')
    assert_one_line_error(places.run(*RUN), places.results.parent, '--result_dir')
    monkeypatch.chdir(tmp_path)  # from elsewhere the program still finds its own data
    assert_one_line_error(run_here('--dataset', 'absent', '--phase', 'train'),
                          PROJECT / 'dataset' / 'absent', 'no such folder', 'trainA/')


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has CUDA')
def test_cuda_without_cuda(places):
    assert_one_line_error(places.run('--device', 'cuda'), '--device cuda', '--device cpu')


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


# how the tiny set is damaged, and the parts of the message that follows
BAD_DATA = {
    'no folder': (lambda tiny: shutil.rmtree(tiny / 'trainB'),
                  ['Tiny/trainB', 'no such folder', 'trainA/ (disease)', 'testA/']),
    'empty folder': (lambda tiny: empty(tiny / 'trainA'),
                     ['Tiny/trainA', 'holds no images', 'trainB/ (normal)']),
    'broken image': (lambda tiny: (tiny / 'trainB' / 'b1.png').write_bytes(b'\x89PNG\r\n\x1a\n'),
                     ['Tiny/trainB/b1.png', 'cannot be read']),
    'label of another size': (
        lambda tiny: helpers.draw_labels(tiny / 'val' / 'labels', ['v1'], size=(20, 36)),
        ['v1_segmentation.png', '20×36', '40×36']),
    'label without image': (lambda tiny: (tiny / 'val' / 'images' / 'v0.png').unlink(),
                            ['v0_segmentation.png', 'label without an image']),
}


@pytest.mark.parametrize('damage, parts', BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data_in_training(damage: Callable[[Path], None], parts, places):
    kept = places.results / 'model1' / 'Tiny_params_0000001.pt'
    kept.parent.mkdir(parents=True)
    kept.write_text('an earlier run')
    damage(places.data)
    assert_one_line_error(places.run(*RUN, '--iteration', 2), *parts)
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


def test_a_loss_that_is_no_number_stops_the_run(places):
    result = places.run(*RUN, '--iteration', 20, '--lr', 1e25)
    assert result.returncode == 1
    last = result.stderr.replace('\r', '\n').strip().splitlines()[-1]
    assert last.startswith('stopped: the ') and 'no checkpoint' in last
    assert 'Traceback' not in result.stderr
