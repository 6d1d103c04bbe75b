"""The program as a user runs it: whole runs, what they write, and what bad input gets."""
import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import PROJECT, STAGE_1, TINY_FLAGS, assert_one_line_error, command, draw, draw_labels, same

RUN = [*TINY_FLAGS, *STAGE_1, '--dataset', 'Tiny', '--batch_size', 1, '--save_freq', 2, '--print_freq', 2]


@pytest.fixture
def places(data_root, tmp_path):
    return ['--data_root', data_root, '--result_dir', tmp_path / 'results']


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_train_then_test(places, tmp_path, data_root):
    trained = command(*RUN, *places, '--iteration', 5, '--keep', 1)
    assert trained.returncode == 0, trained.stderr
    results = tmp_path / 'results' / 'Tiny'
    assert names(results / 'model1') == ['Tiny_params_0000005.pt', 'best.pt']
    assert names(results / 'img1') == [f'A2B_000000{i}.png' for i in (2, 4, 5)]
    with open(results / 'log1' / 'losses.csv') as file:
        rows = list(csv.DictReader(file))
    assert [row['iteration'] for row in rows] == ['1', '2', '3', '4', '5']
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())
    with open(results / 'log1' / 'val.csv') as file:
        val = list(csv.DictReader(file))
    assert [row['iteration'] for row in val] == ['2', '4', '5']
    best = torch.load(results / 'model1' / 'best.pt', weights_only=True)
    assert best['best_ja'] == pytest.approx(max(float(row['JA']) for row in val), rel=1e-4)

    # pictures of several sizes; what is written has each one's own
    draw(data_root / 'Tiny' / 'testA', ['wide.jpg'], size=(90, 50), bright_square=True)
    tested = command(*places, '--dataset', 'Tiny', '--phase', 'test', '--device', 'cpu')
    assert tested.returncode == 0, tested.stderr
    assert 'best.pt' in tested.stdout and 'mean' in tested.stdout
    folder = results / 'test1' / 'best'
    for kind in ('mask', 'segmentation', 'heatmap', 'translated', 'overlay'):
        assert names(folder / kind) == ['t0.png', 't1.png', 't2.png', 'wide.png'], kind
        assert Image.open(folder / kind / 't0.png').size == (40, 36)
        assert Image.open(folder / kind / 'wide.png').size == (90, 50)
    assert names(folder / 'translated_B') == ['n0.png']
    metrics = json.loads((folder / 'metrics.json').read_text())
    assert (metrics['dataset'], metrics['stage'], metrics['images']) == ('Tiny', 1, 2)
    assert metrics['checkpoint'].endswith('best.pt')
    assert [row['name'] for row in metrics['per_image']] == ['t0', 't1']
    with open(folder / 'metrics.csv') as file:
        table = list(csv.DictReader(file))
    for row, expected in zip(table, metrics['per_image']):
        mask = np.asarray(Image.open(folder / 'segmentation' / f'{row["name"]}.png')) > 0
        label = np.asarray(Image.open(data_root / 'Tiny' / 'test' / 'labels'
                                      / f'{row["name"]}_segmentation.png')) > 0
        ja = 100 * (mask & label).sum() / (mask | label).sum()
        assert float(row['JA']) == pytest.approx(ja) == pytest.approx(expected['JA'])
        assert metrics['mean']['JA'] == pytest.approx(
            np.mean([row['JA'] for row in metrics['per_image']]))

    kinds = re.search(r'"kinds": (\[.*?\])', (folder / 'report.html').read_text('utf-8'))[1]
    assert [kind['name'] for kind in json.loads(kinds)] == [
        'image', 'heatmap', 'mask', 'segmentation', 'label', 'translated', 'overlay']

    # a second test leaves nothing of the first behind
    (data_root / 'Tiny' / 'testA' / 'wide.jpg').unlink()
    again = command(*places, '--dataset', 'Tiny', '--phase', 'test', '--device', 'cpu',
                    '--pictures', 'False')
    assert again.returncode == 0, again.stderr
    assert names(folder / 'mask') == ['t0.png', 't1.png', 't2.png']
    assert not (folder / 'overlay').exists() and names(folder.parent) == ['best']


def test_second_generation_masks_only(places, data_root, tmp_path):
    tiny = data_root / 'Tiny'
    shutil.rmtree(tiny / 'test')
    shutil.rmtree(tiny / 'val')
    (tiny / 'testA').rename(tiny / 'pictures')
    (tiny / 'testA').mkdir()
    (tiny / 'pictures').rename(tiny / 'testA' / 'images')
    flags = [*RUN, *places, '--generation', 'second', '--light', 'False',
             '--amp', 'True']
    trained = command(*flags, '--iteration', 2)
    assert trained.returncode == 0, trained.stderr
    tested = command(*places, '--dataset', 'Tiny', '--phase', 'test', '--device', 'cpu',
                     '--pictures', 'False')
    assert tested.returncode == 0, tested.stderr
    assert 'no labels' in tested.stdout
    folder = tmp_path / 'results' / 'Tiny' / 'test1' / 'Tiny_params_0000002'
    assert names(folder) == ['heatmap', 'mask', 'metrics.csv', 'metrics.json', 'overview.png',
                             'segmentation']
    assert json.loads((folder / 'metrics.json').read_text())['images'] == 0


def test_resume_goes_on_as_if_never_stopped(places, tmp_path):
    flags = [*RUN, *places, '--iteration', 4, '--augment']
    assert command(*flags).returncode == 0
    folder = tmp_path / 'results' / 'Tiny' / 'model1'
    last = folder / 'Tiny_params_0000004.pt'
    whole = torch.load(last, weights_only=True)
    last.unlink()  # as if the run had been killed after its checkpoint at iteration 2
    resumed = command('--dataset', 'Tiny', *places, '--device', 'cpu', '--num_workers', 2,
                      '--stage', 1, '--resume', 'True')
    assert resumed.returncode == 0, resumed.stderr
    again = torch.load(last, weights_only=True)
    for key in whole:
        assert same(whole[key], again[key]), key
    with open(tmp_path / 'results' / 'Tiny' / 'log1' / 'losses.csv') as file:
        assert [row[0] for row in csv.reader(file)] == ['iteration', '1', '2', '3', '4']
    done = command('--dataset', 'Tiny', *places, '--device', 'cpu', '--stage', 1, '--resume')
    assert done.returncode == 0 and 'already is at iteration 4' in done.stdout


def test_a_new_run_leaves_the_earlier_one_whole(places, tmp_path):
    for seed in (0, 1):
        assert command(*RUN, *places, '--iteration', 2, '--seed', seed).returncode == 0
        if seed == 0:
            tested = command('--dataset', 'Tiny', *places, '--phase', 'test', '--device', 'cpu')
            assert tested.returncode == 0
    results = tmp_path / 'results' / 'Tiny'
    earlier, = results.glob('earlier_*')
    assert names(earlier) == ['img1', 'log1', 'model1', 'test1']
    assert names(earlier / 'model1') == names(results / 'model1')


def test_help_names_every_published_flag():
    shown = command('--help')
    assert shown.returncode == 0
    for flag in ('phase stage light dataset iteration batch_size print_freq save_freq decay_flag lr '
                 'weight_decay adv_weight cycle_weight identity_weight cam_weight recon_weight ch '
                 'n_res n_dis img_size img_ch result_dir device benchmark_flag resume generation '
                 'data_root checkpoint seed num_workers keep amp').split():
        assert f'--{flag} ' in shown.stdout, flag
    assert shown.stdout.count('(default: ') >= 33


BAD_FLAGS = {
    'unknown flag': (['--colour', '3'], ['--colour']),
    'no boolean': (['--light', 'maybe'], ['--light', 'maybe']),
    'iteration 0': (['--iteration', '0'], ['--iteration 0', 'at least 1']),
    'negative weight': (['--cam_weight', '-1'], ['--cam_weight -1']),
    'odd size': (['--img_size', '130'], ['--img_size 130', 'multiple of 4']),
    'small size': (['--img_size', '92'], ['--img_size 92', 'at least 96']),
    'no such phase': (['--phase', 'dream'], ['dream', 'train']),
    'strange data set': (['--dataset', '../etc'], ['../etc']),
    'two channels': (['--img_ch', '2'], ['--img_ch 2']),
    'not a number': (['--lr', 'nan'], ['--lr nan']),
    'unknown device': (['--device', 'gpu'], ['--device gpu']),
}


@pytest.mark.parametrize('flags, parts', BAD_FLAGS.values(), ids=BAD_FLAGS)
def test_bad_flags(flags, parts, places):
    assert_one_line_error(command('--dataset', 'Tiny', *places, *flags), *parts)


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has CUDA')
def test_cuda_without_cuda(places):
    assert_one_line_error(command('--dataset', 'Tiny', *places, '--device', 'cuda'),
                          '--device cuda', '--device cpu')


def break_data(kind, tiny):
    """Damage the tiny set; the parts of the message it has to give."""
    if kind == 'no folder':
        shutil.rmtree(tiny / 'trainB')
        return [tiny / 'trainB', 'no such folder', 'trainA/ (disease)', 'testA/']
    if kind == 'empty folder':
        for path in (tiny / 'trainA').iterdir():
            path.unlink()
        return [tiny / 'trainA', 'holds no pictures', 'trainB/ (normal)']
    if kind == 'broken picture':
        (tiny / 'trainB' / 'b1.png').write_bytes(b'\x89PNG\r\n\x1a\n')
        return [tiny / 'trainB' / 'b1.png', 'cannot be read']
    if kind == 'label of another size':
        draw_labels(tiny / 'val' / 'labels', ['v1'], size=(20, 36))
        return ['v1_segmentation.png', '20×36', '40×36']
    (tiny / 'val' / 'images' / 'v0.png').unlink()
    return ['v0_segmentation.png', 'label without a picture']


@pytest.mark.parametrize('kind', ['no folder', 'empty folder', 'broken picture',
                                  'label of another size', 'label without picture'])
def test_bad_data_in_training(kind, places, data_root, tmp_path):
    kept = tmp_path / 'results' / 'Tiny' / 'model1' / 'Tiny_params_0000001.pt'
    kept.parent.mkdir(parents=True)
    kept.write_text('an earlier run')
    parts = break_data(kind, data_root / 'Tiny')
    assert_one_line_error(command(*RUN, *places, '--iteration', 2), *parts)
    assert kept.read_text() == 'an earlier run'


def test_bad_test_input(places, data_root, tmp_path):
    flags = ['--dataset', 'Tiny', *places, '--phase', 'test', '--device', 'cpu']
    assert_one_line_error(command(*flags), 'best.pt', 'Tiny_params_*.pt', '--checkpoint')
    assert_one_line_error(command(*flags, '--checkpoint', tmp_path / 'no.pt'), tmp_path / 'no.pt')
    (tmp_path / 'text.pt').write_text('text')
    assert_one_line_error(command(*flags, '--checkpoint', tmp_path / 'text.pt'), 'text.pt')
    assert command(*RUN, *places, '--iteration', 2).returncode == 0
    assert_one_line_error(command(*flags, '--ch', 8), '--ch 8', 'ch 4')
    (data_root / 'Tiny' / 'testA' / 't1.png').write_text('no picture')
    left_out = command(*flags)  # and the rest is done
    assert left_out.returncode == 1 and 't1.png: cannot be read' in left_out.stderr


def test_result_folder_that_cannot_be_written(places, tmp_path):
    (tmp_path / 'results').write_text('a file')
    assert_one_line_error(command(*RUN, *places, '--iteration', 2), tmp_path / 'results',
                          '--result_dir')


def test_data_is_found_from_any_folder(tmp_path):
    """Started from elsewhere, the program still finds its own data and models."""
    shown = command('--dataset', 'absent', '--phase', 'train', cwd=tmp_path)
    assert_one_line_error(shown, PROJECT / 'dataset' / 'absent', 'no such folder', 'trainA/')


def test_a_loss_that_is_no_number_stops_the_run(places, tmp_path):
    result = command(*RUN, *places, '--iteration', 20, '--lr', 1e25)
    assert result.returncode == 1
    last = result.stderr.replace('\r', '\n').strip().splitlines()[-1]
    assert last.startswith('stopped: the ') and 'no checkpoint' in last
    assert 'Traceback' not in result.stderr


def test_flags_that_contradict_a_resumed_run(places):
    assert command(*RUN, *places, '--iteration', 2).returncode == 0
    flags = ['--dataset', 'Tiny', *places, '--stage', 1, '--resume', '--device', 'cpu', '--iteration', 4]
    assert_one_line_error(command(*flags, '--n_res', 2), '--n_res 2', 'n_res 1')
    assert_one_line_error(command(*flags, '--checkpoint', 'x.pt'), '--checkpoint', '--resume')
