"""Stage 2, val and pseudo masks as a user runs them."""
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import checkpoint as checkpoints
import dataset
from conftest import STAGE_1, TINY, TINY_FLAGS, Places, assert_one_line_error, command, same
from masks import Teacher, average_over_flips, mask_network
from networks import MaskPrediction
from settings import Architecture, resolve
from test_checkpoint import authors_file
from trainer import Trainer

RUN = [*TINY_FLAGS, *STAGE_1, '--batch_size', 1, '--save_freq', 2, '--print_freq', 2]


@pytest.fixture
def places(data_root, tmp_path):
    return Places(data_root, tmp_path)


@pytest.fixture
def stage_1(places):
    """Places with a stage-1 run of two iterations."""
    places.done(*RUN, '--phase', 'train', '--iteration', 2)
    return places


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def read(path):
    return np.asarray(Image.open(path))


STUDENT = ['--phase', 'train', '--stage', 2, '--ch', 4, '--batch_size', 2, '--normal_batch', 1,
           '--save_freq', 2, '--print_freq', 2, '--warm_up', 1, '--renew_freq', 1]


def test_the_whole_way_with_a_student(stage_1):
    trained = command(*stage_1.flags, *STUDENT, '--iteration', 4)
    assert trained.returncode == 0, trained.stderr
    out = trained.stdout
    assert 'stage-1 masks: ' in out and 'model1/best.pt' in out
    run = stage_1.results / 'model2'
    assert names(run) == ['Tiny_params_0000002.pt', 'Tiny_params_0000004.pt', 'best.pt',
                          'teacher.pt']
    assert names(stage_1.results / 'syn_trainA') == ['a0.png', 'a1.png', 'a2.png', 'a3.png',
                                                     'a4.png', 'made_by.json']
    assert read(stage_1.results / 'syn_trainA' / 'a0.png').shape == (36, 40)
    assert names(stage_1.results / 'img2') == ['A2B_0000002.png', 'A2B_0000004.png']
    saved = checkpoints.read(run / 'Tiny_params_0000004.pt')
    assert set(saved.networks) == {'student', 'average', 'teacher'}

    # val reads nothing but val
    (stage_1.data / 'aside').mkdir()
    for folder in ('trainA', 'trainB', 'testA', 'test'):
        (stage_1.data / folder).rename(stage_1.data / 'aside' / folder)
    out = stage_1.done('--phase', 'val', '--stage', 2)
    for folder in ('trainA', 'trainB', 'testA', 'test'):
        (stage_1.data / 'aside' / folder).rename(stage_1.data / folder)
    table = [line for line in out.splitlines() if line.startswith('Tiny_params_')]
    assert len(table) == 2 * (5 + 8)  # checkpoints × (five rules + the CRF with eight t)
    column = [float(line.split()[-5]) for line in table]
    assert column == sorted(column, reverse=True)
    val = json.loads((run / 'val.json').read_text())
    assert [path.name for path in run.glob('.*')] == []  # no temporary file is left
    again = stage_1.done('--phase', 'val', '--stage', 2, '--checkpoint', *run.glob('*.pt'))
    assert again.count('Tiny_params_') == out.count('Tiny_params_')
    assert val['best'] == val['rows'][0] and val['best']['file'] == table[0].split()[0]
    assert same(checkpoints.read(run / 'best.pt').networks,
                checkpoints.read(run / val['best']['file']).networks)

    # test uses what val chose, and says what it used
    out = stage_1.done('--phase', 'test', '--stage', 2)
    assert 'teacher.pt' in out
    folder = stage_1.results / 'test2' / 'best'
    for kind in ('mask', 'segmentation', 'stage_1_mask', 'overlay'):
        assert names(folder / kind) == ['t0.png', 't1.png', 't2.png'], kind
    metrics = json.loads((folder / 'metrics.json').read_text())
    assert metrics['postprocess'] == val['best']['rule'] and metrics['stage'] == 2
    assert metrics['checkpoint'].endswith('model2/best.pt')
    assert metrics['stage_1_masks'].endswith('model2/teacher.pt')
    assert metrics['images'] == 2


def test_the_stored_choice_belongs_to_its_networks(stage_1):
    stage_1.done('--phase', 'val')
    path = stage_1.results / 'model1' / 'val.json'
    val = json.loads(path.read_text())
    for row in val['rows']:  # as if the CRF with t 3 had been best
        if (row['rule'], row['crf_t']) == ('crf', 3):
            chosen = row
    val['rows'].remove(chosen)
    val['rows'].insert(0, chosen)
    path.write_text(json.dumps(val))

    def used(*flags):
        stage_1.done('--phase', 'test', '--pictures', 'False', *flags)
        metrics = json.loads((stage_1.results / 'test1' / 'best' / 'metrics.json').read_text())
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
    assert not (folder / 'segmentation').exists() and not (folder / 'overlay').exists()
    assert json.loads((folder / 'metrics.json').read_text())['mean'] == {}


def test_val_of_given_files(stage_1):
    stage_1.done(*RUN, '--phase', 'train', '--iteration', 4, '--resume', 'True')
    run = stage_1.results / 'model1'
    out = stage_1.done('--phase', 'val', '--checkpoint', run / 'Tiny_params_0000002.pt',
                       run / 'Tiny_params_0000004.pt', '--postprocess', 'otsu')
    rows = json.loads((run / 'val.json').read_text())['rows']
    assert {row['file'] for row in rows} == {'Tiny_params_0000002.pt', 'Tiny_params_0000004.pt'}
    assert {row['rule'] for row in rows} == {'otsu'} and out.count('otsu') == 3
    # the best so far is not lost to a worse one that is scored alone
    worse = min(rows, key=lambda row: row['JA'])['file']
    before = checkpoints.read(run / 'best.pt').networks
    stage_1.done('--phase', 'val', '--checkpoint', run / worse, '--postprocess', 'otsu')
    assert same(checkpoints.read(run / 'best.pt').networks, before)
    elsewhere = stage_1.data / 'other.pt'
    shutil.copy(run / worse, elsewhere)
    assert_one_line_error(stage_1.run('--phase', 'val', '--checkpoint', run / worse, elsewhere),
                          'one folder')
    assert_one_line_error(stage_1.run('--phase', 'test', '--checkpoint', run / worse, elsewhere),
                          '--phase test takes one')


def test_pseudo_masks_are_the_masks_of_stage_1(stage_1):
    before = names(stage_1.data)
    out = stage_1.done('--phase', 'pseudo_mask', '--flips', 'False')
    assert names(stage_1.data) == before  # nothing is written into the user's data set
    assert [out.count(f'syn_{split}') for split in ('trainA', 'valA', 'testA')] == [1, 1, 1]
    stage_1.done('--phase', 'test', '--postprocess', 'otsu')
    for stem in ('t0', 't1', 't2'):
        assert (read(stage_1.results / 'syn_testA' / f'{stem}.png')
                == read(stage_1.results / 'test1' / 'best' / 'mask' / f'{stem}.png')).all()


def test_masks_are_made_anew_only_for_another_teacher(stage_1, tiny_settings):
    file = stage_1.results / 'model1' / 'best.pt'

    def masks():
        teacher = Teacher(tiny_settings(stage=2, result_dir=str(stage_1.results.parent)), file,
                          torch.device('cpu'))
        paths = dataset.list_pictures(stage_1.data / 'trainA')
        return teacher.masks('trainA', paths)['a0'].stat().st_mtime_ns

    first = masks()
    assert masks() == first
    content = torch.load(file, weights_only=True)
    content['genA2B']['mask_decoder.output.weight'] += 0.1
    torch.save(content, file)
    assert masks() > first


@pytest.mark.parametrize('scheme', ['published', 'student'])
def test_resume_goes_on_as_if_never_stopped(stage_1, scheme):
    flags = STUDENT if scheme == 'student' else ['--phase', 'train', '--stage', 2, '--save_freq', 2]
    stage_1.done(*flags, '--scheme', scheme, '--iteration', 4)
    last = stage_1.results / 'model2' / 'Tiny_params_0000004.pt'
    whole = torch.load(last, weights_only=True)
    last.unlink()
    stage_1.done('--phase', 'train', '--stage', 2, '--resume', 'True')
    again = torch.load(last, weights_only=True)
    for key in whole:
        assert same(whole[key], again[key]), key


def test_the_published_scheme_shows_the_generator_the_stage_1_mask(stage_1):
    stage_1.done('--phase', 'train', '--stage', 2, '--scheme', 'published', '--iteration', 1)
    path = stage_1.results / 'model2' / 'best.pt'
    source = checkpoints.read(path)
    # settings are those of stage 1, except where flags say otherwise
    assert (source.settings['ch'], source.settings['batch_size']) == (4, 1)
    assert (source.settings['iteration'], source.settings['stage']) == (1, 2)
    stage_1.done('--phase', 'test', '--stage', 2, '--postprocess', 'otsu')
    folder = stage_1.results / 'test2' / 'best'

    settings = resolve({**TINY, 'phase': 'test'}, source.settings)
    network = mask_network(source, settings, torch.device('cpu'))

    def tensor(picture, mode):
        small = np.asarray(picture.convert(mode).resize((32, 32), Image.Resampling.BICUBIC))
        return torch.from_numpy(small.reshape(32, 32, -1).copy()).permute(2, 0, 1)[None] / 127.5 - 1

    image = tensor(Image.open(stage_1.data / 'testA' / 't0.png'), 'RGB')
    mask = tensor(Image.open(folder / 'stage_1_mask' / 't0.png'), 'L').expand(-1, 3, -1, -1)
    with torch.no_grad():
        expected = network.predict_mask(image, mask).mask[0, 0].numpy()
        other = network.predict_mask(image).mask[0, 0].numpy()
    expected, other = (np.asarray(Image.fromarray(one).resize((40, 36), Image.Resampling.BILINEAR))
                       * 255 for one in (expected, other))
    written = read(folder / 'mask' / 't0.png')
    assert np.abs(written - expected).max() < 0.51 < np.abs(written - other).max()


def test_an_authors_stage_2_file_is_tested(stage_1):
    """Six state dicts, no settings: generators that take a stage-1 mask."""
    run = stage_1.results / 'model2'
    run.mkdir()
    authors_file(run / 'Tiny_params_0000460.pt', Architecture('first', 4, 1, True, 4, 32, 3))
    out = stage_1.done('--phase', 'test', '--stage', 2, '--img_size', 32)
    assert 'Tiny_params_0000460.pt' in out and 'model1/best.pt' in out
    metrics = json.loads((stage_1.results / 'test2' / 'Tiny_params_0000460' / 'metrics.json')
                         .read_text())
    assert metrics['images'] == 2 and metrics['stage'] == 2
    assert names(run) == ['Tiny_params_0000460.pt']


def published_masks(data, pictures, split):
    """A folder syn_<split> as published data sets have it, with a mask of a square."""
    folder = data / f'syn_{split}'
    folder.mkdir()
    mask = np.zeros((36, 40), np.uint8)
    mask[10:20, 12:24] = 230
    for path in pictures.iterdir():
        Image.fromarray(mask).save(folder / f'{path.stem}.png')
    return folder


def test_published_masks_are_read_where_present(places):
    """Without any stage-1 network."""
    for split, pictures in (('trainA', 'trainA'), ('valA', 'val/images'), ('testA', 'testA')):
        published_masks(places.data, places.data / pictures, split)
    out = places.done(*STUDENT, '--iteration', 2, '--img_size', 32)
    assert 'syn_*' in out and not (places.results / 'syn_trainA').exists()
    assert 'teacher.pt' not in names(places.results / 'model2')
    places.done('--phase', 'test', '--stage', 2)
    shown = read(places.results / 'test2' / 'best' / 'stage_1_mask' / 't0.png')
    assert shown.max() == 230
    (places.data / 'syn_trainA' / 'a3.png').unlink()
    assert_one_line_error(places.run(*STUDENT, '--iteration', 2, '--img_size', 32),
                          'syn_trainA', 'no mask of a3.png')


def test_bad_requests_of_stage_2(places, stage_1):
    assert_one_line_error(stage_1.run('--stage', 1, '--scheme', 'student'), '--stage 2')
    assert_one_line_error(stage_1.run('--stage', 2, '--scheme', 'published', '--generation',
                                      'second'), '--scheme published', 'second')
    assert_one_line_error(stage_1.run('--stage', 2, '--guard', 2), '--guard 2', 'at most 1')
    assert_one_line_error(stage_1.run('--stage', 2, '--teacher', 'none.pt'), 'none.pt', 'no such')
    stage_1.done(*STUDENT, '--iteration', 2)
    student = stage_1.results / 'model2' / 'best.pt'
    assert_one_line_error(stage_1.run('--stage', 2, '--teacher', student), student, 'of stage 2')
    assert_one_line_error(stage_1.run('--phase', 'test', '--stage', 1, '--checkpoint', student),
                          '--stage 1', 'stage 2')
    shutil.rmtree(stage_1.data / 'val' / 'labels')
    assert_one_line_error(stage_1.run('--phase', 'val'), 'no labels', 'val/labels/')
    shutil.rmtree(stage_1.results / 'model1')
    (stage_1.results / 'model2').rename(stage_1.results / 'gone')
    assert_one_line_error(stage_1.run(*STUDENT), 'a stage-1 network is needed',
                          'model1/best.pt', '--teacher')


def test_collapsed_masks_are_told(tiny_settings, capsys):
    trainer = Trainer(tiny_settings())
    for share in [0.2] * 5 + [0.0] * 60 + [0.5] * 5 + [1.0] * 60:
        trainer._watch_for_collapse(share)
        trainer.iteration += 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(': ')[1].split(' (')[0] for line in lines] == [
        'masks of disease pictures have become empty',
        'masks of disease pictures are no longer empty',
        'masks of disease pictures have become full']


def test_sheets_tell_train_and_val_pictures_of_one_name_apart(tiny_settings, data_root, tmp_path):
    shown = []
    for folder, level in (('trainA', 50), ('val/images', 200)):
        picture = next((data_root / 'Tiny' / folder).iterdir())
        picture = picture.rename(picture.with_name('same.png'))
        mask = tmp_path / f'{level}.png'
        Image.fromarray(np.full((36, 40), level, np.uint8)).save(mask)
        shown.append(([picture], {'same': mask}))
    for scheme in ('student', 'published'):
        trainer = Trainer(tiny_settings(stage=2, scheme=scheme))
        trainer._prepare_learner(None)
        rows = trainer._sheet(shown)
        assert [round(picture.mean()) for picture in rows['stage-1 mask']] == [50, 200]


def test_a_resumed_run_saves_as_often_as_before(stage_1):
    stage_1.done(*STUDENT, '--save_freq', 1, '--keep', 9, '--iteration', 2)
    stage_1.done('--phase', 'train', '--stage', 2, '--resume', 'True', '--iteration', 4)
    assert len(checkpoints.numbered(stage_1.results / 'model2', 'Tiny')) == 4


def test_flips_are_averaged_in_the_pictures_own_orientation():
    """A network that looks at one corner: over four flips each corner counts a quarter."""
    class CornerNetwork(torch.nn.Module):
        def predict_mask(self, image, companion=None):
            mask = torch.zeros(len(image), 1, *image.shape[2:])
            mask[:, 0, 0, 0] = image[:, 0, 0, 0] + (0 if companion is None else companion[:, 0, 0, 0])
            return MaskPrediction(mask)

    network = CornerNetwork()
    image, companion = torch.rand(2, 3, 4, 6), torch.rand(2, 3, 4, 6)
    for inputs in ([image], [image, companion]):
        mask = network.predict_mask(*inputs).mask
        mean = average_over_flips(network, inputs, mask)
        expected = torch.zeros_like(mask)
        for row in (0, -1):
            for column in (0, -1):
                expected[:, 0, row, column] = sum(part[:, 0, row, column] for part in inputs) / 4
        assert torch.allclose(mean, expected)
        upright = average_over_flips(network, inputs, mask, no_side_is_up=False)
        assert torch.allclose(upright[..., 0, :], 2 * expected[..., 0, :])  # the two upper corners
        assert not upright[..., 1:, :].any()
