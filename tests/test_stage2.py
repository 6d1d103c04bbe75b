"""Stage 2, val and test as a user runs them."""
import json
import shutil

import numpy as np
import torch
from PIL import Image

import checkpoint as checkpoints
import dataset
import helpers
from config import Config, resolve
from helpers import ONLY_MASKS, TINY, TINY_FLAGS, assert_one_line_error, names, read_json, same
from inference.soft_masks import mask_network
from predict import Predictor
from prepared import snapshot
from test_checkpoint import authors_file


def test_a_student_then_val_that_reads_nothing_but_val_then_test_as_it_chose(all_stages):
    student, run = all_stages, all_stages.results / 'model2'
    soft_masks = student.results / 'syn_trainA'
    assert names(soft_masks) == ['a0.png', 'a1.png', 'a2.png', 'a3.png', 'a4.png', 'source.json',
                                 'written.json']
    assert helpers.read_pixels(soft_masks / 'a0.png').shape == (36, 40)
    assert names(student.results / 'img2') == ['A2B_0000002.png']
    saved = checkpoints.read(run / 'Tiny_params_0000002.pt')
    assert set(saved.networks) == {'student', 'ema', 'target'}

    (run / 'val.json').unlink()
    others = ('trainA', 'trainB', 'testA', 'test')
    for folder in others:
        (student.data / folder).rename(student.data / f'{folder} aside')
    out = student.done('--phase', 'val', '--stage', 2)
    for folder in others:
        (student.data / f'{folder} aside').rename(student.data / folder)
    table = [line for line in out.splitlines() if line.startswith('Tiny_params_')]
    assert len(table) == 2  # the best row of each checkpoint
    column = [float(line.split()[-5]) for line in table]
    assert column == sorted(column, reverse=True)
    val = read_json(run / 'val.json')
    assert [path.name for path in run.glob('.*')] == []  # no temporary file is left
    assert len(val['rows']) == 2 * (6 + 8)  # checkpoints × (six rules + the CRF with eight t)
    assert val['best'] == val['rows'][0] and val['best']['file'] == table[0].split()[0]
    assert same(checkpoints.read(run / 'best.pt').networks,
                checkpoints.read(run / val['best']['file']).networks)

    out = student.done('--phase', 'test', '--stage', 2)
    assert 'teacher.pt' in out
    folder = student.results / 'test2' / 'best'
    for kind in ('mask', 'segmentation', 'teacher_mask', 'overlay'):
        assert names(folder / kind) == ['t0.png', 't1.png', 't2.png'], kind
    metrics = read_json(folder / 'metrics.json')
    assert (metrics['postprocess'], metrics['stage'], metrics['images']) == (
        val['best']['rule'], 2, 2)
    assert metrics['checkpoint'].endswith('model2/best.pt')
    assert metrics['teacher'].endswith('model2/teacher.pt')


def test_the_stored_choice_belongs_to_its_networks(stage_1):
    stage_1.done('--phase', 'val')
    path = stage_1.results / 'model1' / 'val.json'
    val = read_json(path)
    chosen = next(row for row in val['rows'] if (row['rule'], row['crf_t']) == ('crf', 3))
    val['rows'].remove(chosen)
    val['rows'].insert(0, chosen)  # as if the CRF with t 3 had been best
    path.write_text(json.dumps(val))

    def used(*flags):
        stage_1.done('--phase', 'test', *ONLY_MASKS, *flags)
        metrics = read_json(stage_1.results / 'test1' / 'best' / 'metrics.json')
        return metrics['postprocess'], metrics['crf_t']

    assert used() == ('crf', 3)
    assert used('--postprocess', 'watershed') == ('watershed', None)
    assert used('--crf_t', 5) == ('crf', 5)
    for row in val['rows']:
        row['fingerprint'] = '0' * 16  # other networks under the same name
    path.write_text(json.dumps(val))
    assert used() == ('otsu', None)
    assert used('--postprocess', 'crf') == ('crf', 1)
    path.write_text('{')
    assert_one_line_error(stage_1.run('--phase', 'test'), path, '--phase val again')


def test_no_postprocessing_writes_soft_masks_alone(stage_1):
    out = stage_1.done('--phase', 'test', '--postprocess', 'none')
    folder = stage_1.results / 'test1' / 'best'
    assert 'no segmentations' in out and (folder / 'mask').is_dir()
    assert not {'segmentation', 'overlay'} & {*names(folder)}
    assert read_json(folder / 'metrics.json')['mean'] == {}
    assert_one_line_error(stage_1.run('--phase', 'val', '--postprocess', 'none'),
                          '--postprocess none')


def test_val_of_given_files(stage_1):
    stage_1.done('--phase', 'train', '--stage', 1, '--iteration', 4, '--resume', 'True')
    run = stage_1.results / 'model1'
    shutil.copy(run / 'best.pt', run / 'teacher.pt')  # is left out
    val = ['--phase', 'val', '--postprocess', 'otsu', '--checkpoint']
    out = stage_1.done(*val, *run.glob('[!b]*.pt'))
    rows = read_json(run / 'val.json')['rows']
    assert {row['file'] for row in rows} == {'Tiny_params_0000002.pt', 'Tiny_params_0000004.pt'}
    assert {row['rule'] for row in rows} == {'otsu'} and out.count('otsu') == 3
    # the best so far is not lost to a worse one that is scored alone
    worse = min(rows, key=lambda row: row['JA'])['file']
    before = checkpoints.read(run / 'best.pt').networks
    stage_1.done(*val, run / worse)
    assert same(checkpoints.read(run / 'best.pt').networks, before)
    elsewhere = stage_1.data / 'other.pt'
    shutil.copy(run / worse, elsewhere)
    assert_one_line_error(stage_1.run(*val, run / worse, elsewhere), 'one folder')
    assert_one_line_error(stage_1.run('--phase', 'test', '--checkpoint', run / worse, elsewhere),
                          '--phase test takes one')


def test_val_of_a_file_elsewhere_leaves_its_folder_alone_and_is_used(stage_1, tmp_path):
    elsewhere = tmp_path / 'downloads'
    elsewhere.mkdir()
    file = shutil.copy(stage_1.results / 'model1' / 'best.pt', elsewhere / 'mine.pt')
    for name in ('report.html', 'best.pt', 'val.json'):
        (elsewhere / name).write_text('mine')
    before = snapshot(elsewhere)
    stage_1.done('--phase', 'val', '--checkpoint', file, '--postprocess', 'watershed')
    assert snapshot(elsewhere) == before
    assert names(stage_1.results / 'val1') == ['report.html', 'val.json']
    stage_1.done('--phase', 'test', '--checkpoint', file, *ONLY_MASKS)
    metrics = read_json(stage_1.results / 'test1' / 'mine' / 'metrics.json')
    assert metrics['postprocess'] == 'watershed'


def test_a_resumed_published_stage_2_goes_on_as_if_never_stopped_and_saves_as_often(stage_1):
    train = ['--phase', 'train', '--stage', 2, '--recipe', 'published']
    stage_1.done(*train, '--save_freq', 1, '--iteration', 2)
    last = stage_1.results / 'model2' / 'Tiny_params_0000002.pt'
    whole = torch.load(last, weights_only=True)
    last.unlink()
    stage_1.done(*train, '--resume', 'True')
    assert same(whole, torch.load(last, weights_only=True))
    stage_1.done(*train, '--resume', 'True', '--iteration', 4)
    assert {'Tiny_params_0000003.pt', 'Tiny_params_0000004.pt'} <= {*names(last.parent)}


def test_the_published_recipe_shows_the_generator_the_stage_1_mask(stage_1):
    stage_1.done('--phase', 'train', '--stage', 2, '--recipe', 'published', '--iteration', 1)
    path = stage_1.results / 'model2' / 'best.pt'
    source = checkpoints.read(path)
    # options are those of stage 1, except where flags say otherwise
    assert (source.config['ch'], source.config['batch_size']) == (4, 1)
    assert (source.config['iteration'], source.config['stage']) == (1, 2)
    stage_1.done('--phase', 'test', '--stage', 2, '--postprocess', 'otsu')
    folder = stage_1.results / 'test2' / 'best'
    config = resolve({**TINY, 'phase': 'test'}, source.config)
    network = mask_network(source, config, torch.device('cpu'))
    image, mask = (
        dataset.to_tensor(dataset.resize(dataset.read_image(path / 't0.png'), (32, 32)))[None]
        for path in (stage_1.data / 'testA', folder / 'teacher_mask'))
    with torch.no_grad():
        outputs = [network.predict_mask(image, mask), network.predict_mask(image)]
    expected, other = (np.asarray(Image.fromarray(output.mask[0, 0].numpy()).resize(
        (40, 36), Image.Resampling.BILINEAR)) * 255 for output in outputs)
    written = helpers.read_pixels(folder / 'mask' / 't0.png')
    assert np.abs(written - expected).max() < 0.51 < np.abs(written - other).max()
    # and so does a Predictor
    predictor = Predictor(path, 'cpu', presence_threshold=0)
    assert predictor.stage1 is not None and predictor.stage1.config.tta == predictor.config.tta
    probability, = predictor.probabilities([helpers.read_pixels(stage_1.data / 'testA' / 't0.png')])
    np.testing.assert_allclose(255 * probability, written, atol=1.5)
    assert torch.is_grad_enabled()


def test_an_authors_stage_2_file_is_tested(stage_1):
    """Six state dicts, no options: generators that take a stage-1 mask."""
    run = stage_1.results / 'model2'
    run.mkdir()
    authors_file(run / 'Tiny_params_0000460.pt', Config(**TINY))
    out = stage_1.done('--phase', 'test', '--stage', 2, '--img_size', 32)
    assert 'Tiny_params_0000460.pt' in out and 'model1/best.pt' in out
    metrics = read_json(stage_1.results / 'test2' / 'Tiny_params_0000460' / 'metrics.json')
    assert metrics['images'] == 2 and metrics['stage'] == 2
    assert names(run) == ['Tiny_params_0000460.pt']


def test_bad_requests_of_teachers_and_stages(all_stages):
    student = all_stages
    assert_one_line_error(student.run('--stage', 2, '--recipe', 'published', '--generation',
                                      'second'), '--stage 2', 'second', '--recipe ours')
    assert_one_line_error(student.run('--stage', 2, '--teacher', 'none.pt'), 'none.pt', 'no such')
    best1, best2 = (student.results / f'model{stage}' / 'best.pt' for stage in (1, 2))
    assert_one_line_error(student.run('--stage', 2, '--teacher', best2), best2, 'of stage 2')
    assert_one_line_error(student.run('--stage', 1, '--recipe', 'ours', '--teacher', best1), best1,
                          'of stage 1; the teacher has to be', 'of stage 0')
    assert_one_line_error(student.run('--phase', 'train', '--teacher', best1), '--teacher',
                          '--stage')
    assert_one_line_error(student.run('--phase', 'test', '--stage', 1, '--checkpoint', best2),
                          '--stage 1', 'stage 2')
    for label in (student.data / 'val' / 'labels').iterdir():
        label.unlink()
    assert_one_line_error(student.run('--phase', 'val'), 'no labels', 'val/labels/')
    for stage in (0, 1, 2):
        shutil.rmtree(student.results / f'model{stage}')
    assert_one_line_error(student.run('--phase', 'train', '--stage', 2, *TINY_FLAGS[-6:]),
                          'needed as teacher', 'model*/best.pt', '--teacher')
