"""Names and paths as people have them: not UTF-8, with brackets, dots and ~, like formulas."""
import io
import json
import os
import shutil
import sys

import pytest

import helpers
import workflow
from config import OPTIONS, PROJECT, resolve
from dataset import list_images
from helpers import ONLY_MASKS, assert_one_line_error, names, run_here
from reporting.tables import TableWriter, open_table
from runtime.files import print_any_character
from utils import UserError

LATIN_1 = os.fsdecode(b'l\xe4sion')  # as old archives unpack it


def test_names_that_are_not_utf8_go_through_all_phases(stage_1, tmp_path):
    for name in ('testA/t0.png', 'test/labels/t0_segmentation.png', 'trainA/a0.png'):
        path = stage_1.data / name
        path.rename(path.with_name(path.name.replace(path.name[:2], LATIN_1)))
    stage_1.done('--phase', 'test')
    folder = stage_1.results / 'test1' / 'best'
    assert (folder / 'mask' / f'{LATIN_1}.png').is_file()
    assert [row['name'] for row in helpers.read_csv(folder / 'metrics.csv')] == [
        'l\\udce4sion', 't1']
    per_image = helpers.read_json(folder / 'metrics.json')['per_image']
    assert per_image[0]['name'] == LATIN_1  # JSON gives the name itself back
    assert 'l\\udce4sion' in (folder / 'report.html').read_text('utf-8')
    stage_1.done('--phase', 'pseudo_mask')
    stage_1.done('--phase', 'predict', '--input', stage_1.data / 'testA',
                 '--output', tmp_path / 'masks')
    assert (tmp_path / 'masks' / f'{LATIN_1}.png').is_file()
    assert helpers.read_csv(tmp_path / 'masks' / 'predictions.csv')[0]['file'] == (
        'l\\udce4sion.png')
    # a data set made of them knows its files again
    prepare = ['--phase', 'prepare', '--dataset', 'new', '--data_root', tmp_path / 'new',
               '--source_format', 'folders', '--source', stage_1.data]
    for more in ([], ['--overwrite', True]):
        assert run_here(*prepare, *more).returncode == 0
    assert (tmp_path / 'new' / 'new' / 'trainA' / f'{LATIN_1}.png').is_file()


@pytest.mark.parametrize('encoding', ['ascii', 'cp1252'])
def test_what_a_terminal_cannot_show_is_escaped(encoding, monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, 'stdout', shown)
    print_any_character()
    print('γ and β', LATIN_1, flush=True)
    text = shown.buffer.getvalue().decode(encoding)
    assert text.startswith('\\u03b3 and') and '\\udce4' in text
    monkeypatch.undo()


def test_a_data_set_whose_name_is_a_pattern(all_stages):
    """Renamed in the data, the results and the files: everything is found as before."""
    for name in ('set[1]', 'a**b'):
        data, results = (folder.with_name(name) for folder in (all_stages.data, all_stages.results))
        shutil.copytree(all_stages.data, data)
        shutil.copytree(all_stages.results, results)
        for path in results.glob('model?/Tiny_params_*.pt'):
            path.rename(path.with_name(path.name.replace('Tiny', name)))
        (results / 'model2' / 'best.pt').unlink()
        out = run_here(*all_stages.flags, '--dataset', name, '--phase', 'test', *ONLY_MASKS)
        assert f'{name}_params_0000002.pt (iteration 2)' in out.stdout, out.stderr
        assert names(results / 'test2') == [f'{name}_params_0000002']
        resumed = run_here(*all_stages.flags, '--dataset', name, '--stage', 1, '--resume')
        assert 'already is at iteration 2' in resumed.stdout, resumed.stderr


def test_home_in_every_path(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    paths = {name for name, option in OPTIONS.items() if option.metadata['path']}
    assert paths == {'data_root', 'result_dir', 'checkpoint', 'source', 'input', 'labels',
                     'output', 'teacher', 'encoder_weights'}
    for name in paths:
        several = OPTIONS[name].type is tuple
        config = resolve({name: ['~/x', 'y'] if several else '~/x/'})
        expected = (f'{tmp_path}/x', 'y') if several else f'{tmp_path}/x/'
        assert getattr(config, name) == expected
    assert resolve({'dataset': '~'}).dataset == '~'


def test_a_new_folder_of_masks_may_have_a_dot(stage_1, tmp_path):
    predict, images = ['--phase', 'predict', '--input'], stage_1.data / 'testA'
    stage_1.done(*predict, images, '--output', tmp_path / 'masks.v2')
    stage_1.done(*predict, images / 't0.png', '--output', f'{tmp_path}/one.2024/')
    assert names(tmp_path / 'masks.v2')[-1] == names(tmp_path / 'one.2024')[-1].replace('0', '2')
    for source, name in ((images, 'x.jpg'), (images, 'x.png'), (images / 't0.png', 'x.2024')):
        assert_one_line_error(stage_1.run(*predict, source, '--output', tmp_path / name), name)
        assert not (tmp_path / name).exists()


def test_no_cell_is_a_formula(stage_1, tmp_path):
    labels = stage_1.data / 'test' / 'labels'
    formula = '=HYPERLINK("http:x","y")'
    (stage_1.data / 'testA' / 't0.png').rename(stage_1.data / 'testA' / f'{formula}.png')
    (labels / 't0_segmentation.png').rename(labels / f'{formula}_segmentation.png')
    stage_1.done('--phase', 'test', *ONLY_MASKS)
    rows = helpers.read_csv(stage_1.results / 'test1' / 'best' / 'metrics.csv')
    assert [row['name'] for row in rows] == [f"'{formula}", 't1']
    masks = tmp_path / 'm'
    stage_1.done('--phase', 'predict', '--input', stage_1.data / 'testA', '--output', masks)
    rows = helpers.read_csv(masks / 'predictions.csv')
    assert [row['file'] for row in rows] == [f"'{formula}.png", 't1.png', 't2.png']
    starts = '=+-@\t\r＝＋－＠'
    with open_table(tmp_path / 'x.csv') as file:
        writer = TableWriter(file, ['file', 'number'])
        for start in starts:
            writer.writerow({'file': f'{start}1', 'number': -1.5})
    with open(tmp_path / 'x.csv', encoding='utf-8', newline='') as file:
        text = file.read()
    for start in starts:
        assert f"'{start}1" in text
    assert text.count(',-1.5') == len(starts)


@pytest.mark.parametrize('arguments, meant', [
    (['--phase', 'Test'], 'test'), (['--phase', 'pred'], 'predict'),
    (['--profile', 'Brain-MRI'], 'brain_mri'), (['x', '--learning_rate', '3'], '--lr'),
    (['-epochs', '3'], '--iteration'), (['--learning', '3'], '--lr'),
    (['--epcohs', '3'], '--iteration'), (['--gpus', '0'], '--device'),
    (['--batch', '4'], '--batch_size'), (['--iterations', '4'], '--iteration'),
    (['--seg', 'x'], '--output'), (['--input_dir', 'x'], '--input'),
    (['--dataset', 'isic', '--phase', 'predict', '--input', str(PROJECT / 'docs/overview.png'),
      '--output', 'x.png', '--result_dir', 'nowhere'], '--dataset ISIC')])
def test_what_was_meant_is_proposed(arguments, meant):
    assert_one_line_error(run_here(*arguments), f'did you mean {meant}? ')


def test_a_data_set_of_another_case_is_proposed(places):
    assert_one_line_error(places.run('--dataset', 'tiny', '--phase', 'test'),
                          'did you mean --dataset Tiny?')


@pytest.mark.parametrize('flag', ['--iteration', '--dataset', '--resume', '--split', '--stage'])
def test_two_dashes_are_no_value(flag, places):
    assert_one_line_error(places.run(f'{flag}=--'), f'{flag}=--', 'no value')


def replace_images(folder, seed):
    """Other images of the same names and sizes."""
    helpers.draw_images(folder, [path.name for path in list_images(folder)], seed=seed)


def test_replaced_images_of_the_same_names_get_masks_of_their_own(stage_1):
    def masks():
        stage_1.done('--phase', 'pseudo_mask')
        return {name: (stage_1.results / 'syn_trainA' / name).read_bytes()
                for name in names(stage_1.results / 'syn_trainA')}
    first = masks()
    assert masks() == first
    replace_images(stage_1.data / 'trainA', 9)
    other = masks()
    assert all(other[name] != first[name] for name in first)
    assert set(json.loads(other['source.json'])['images']) == set(names(stage_1.data / 'trainA'))


def test_resuming_says_what_changed_and_refuses_another_data_set(stage_1):
    resume = ['--phase', 'train', '--stage', 1, '--resume']
    helpers.draw_images(stage_1.data / 'trainA', ['a0.png', 'new.png'], seed=8)
    out = stage_1.done(*resume, '--iteration', 3, '--lr', 0.5)
    assert 'changed settings: iteration 3 (was 2), lr 0.5 (was 5e-05)\n' in out
    assert 'of the 8 training images 1 are gone or hold something else, and 2 are new' in out
    for domain in 'AB':
        replace_images(stage_1.data / f'train{domain}', 7)
    result = stage_1.run(*resume, '--iteration', 4)
    assert_one_line_error(result, stage_1.data, 'another data set', 'of the 8 training images',
                          'holds 0', '--data_root')
    assert not (stage_1.results / 'model1' / 'Tiny_params_0000004.pt').exists()


def test_the_stage_trained_last_is_a_record_and_no_time_of_a_file(all_stages):
    def tested():
        return workflow.plan({'phase': 'test', 'dataset': 'Tiny',
                              'result_dir': str(all_stages.results.parent)})[0].flags['stage']
    for path in all_stages.results.glob('model2/*.pt'):
        os.utime(path, (0, 0))  # the clock went back
    assert helpers.read_json(all_stages.results / 'stages.json') == [0, 1, 2]
    assert tested() == 2
    all_stages.done('--stage', 1, '--resume', '--iteration', 3)
    for path in all_stages.results.glob('model1/*.pt'):
        os.utime(path, (0, 0))
    assert tested() == 1
    for record in ('[', '{}', '[[]]'):  # without one: the highest
        (all_stages.results / 'stages.json').write_text(record, 'utf-8')
        assert tested() == 2


def test_wrong_types_from_python_are_one_line():
    for name, value in {'ch': True, 'lr': 'fast', 'img_size': '32', 'stage': 1.0, 'tta': 3,
                        'light': 1, 'checkpoint': 'x.pt', 'dataset': None}.items():
        with pytest.raises(UserError, match=f'--{name} .*has to be'):
            resolve({name: value})
