"""Segmentations of any images and volumes, from the command line and from Python."""
import shutil
from dataclasses import replace
from functools import partial
from unittest import mock

import nibabel
import numpy as np
import pytest
from PIL import Image

from helpers import assert_one_line_error, draw_images, names, read_csv, read_pixels, run_here
from inference.postprocess import slices_with_lesion
from networks import MaskPrediction
from nifti_files import head, store
from predict import PredictionWriter, Predictor, predict_volume, say_what_is_slow
from preparation import nifti
from prepared import snapshot
from runtime.lock import locked
from utils import UserError


@pytest.fixture
def predict(stage_1_run, tmp_path, monkeypatch):
    """--phase predict with a trained checkpoint, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return partial(stage_1_run.run, '--phase', 'predict', '--presence_threshold', 0)


@pytest.fixture(scope='module')
def checkpoint(stage_1_run):
    return stage_1_run.results / 'model1' / 'best.pt'


@pytest.fixture(scope='module')
def predictor(checkpoint):
    return Predictor(checkpoint, 'cpu', presence_threshold=0, num_workers=0)


def bright_is_lesion(checkpoint, level, **options):
    """A Predictor that knows the answer: 1 where the image is brighter than `level`, else 0."""
    predictor = Predictor(checkpoint, 'cpu', postprocess='threshold', tta='none', **options)
    predictor.network.predict_mask = lambda image: MaskPrediction(
        (image.mean(1, keepdim=True) > 2 * level - 1).float())
    return predictor


def test_a_folder_is_segmented_as_in_a_test(stage_1, tmp_path):
    tested, out = stage_1.results / 'test1' / 'best', tmp_path / 'out'
    stage_1.done('--phase', 'test', '--tta', 'flips')
    stage_1.done('--phase', 'predict', '--presence_threshold', 0, '--tta', 'flips', '--input',
                 stage_1.data / 'testA', '--output', out, '--probability')
    assert list(snapshot(out)) == ['predictions.csv', *sorted(
        f'{stem}{end}.png' for stem in ('t0', 't1', 't2') for end in ('', '_probability'))]
    for row in read_csv(out / 'predictions.csv'):
        name = row['file']
        mask = read_pixels(out / name)
        np.testing.assert_array_equal(mask, read_pixels(tested / 'segmentation' / name))
        assert int(row['lesion_px']) == (mask == 255).sum() and set(np.unique(mask)) <= {0, 255}
        assert float(row['lesion_percent']) == pytest.approx(100 * (mask == 255).mean(), abs=1e-3)
        assert row['lesion_mm2'] == row['lesion_ml'] == ''  # an image's spacing is not known
        np.testing.assert_array_equal(read_pixels(out / name.replace('.', '_probability.')),
                                      read_pixels(tested / 'mask' / name))


def test_folders_in_folders_and_what_cannot_be_read(predict, tmp_path):
    source, deep = tmp_path / 'in', tmp_path / 'in' / 'deep'
    draw_images(source, ['a.jpg', 'a.png', 'ä b.png'], bright_square=True)
    draw_images(deep / 'er', ['a.png'], size=(90, 50))
    draw_images(source / '.hidden', ['h.png'])
    draw_images(source / 'labels', ['a_Segmentation.png'])
    for path in (source / 'notes.txt', deep / 'broken.png', deep / 'cut.nii'):
        path.write_text('text')
    for name in ('head.nii.gz', 'x_seg.nii.gz', 'x_t1.nii', 'x-t2f.nii'):  # as BraTS names them
        store(deep / name, head())
    result = predict('--input', source, '--output', 'masks')
    assert result.returncode == 1
    for part in ('broken.png', 'cut.nii',
                 'a.png: its masks would take the place of those of a.jpg'):
        assert part in result.stderr
    assert 'skipped: 2 labels, 1 of another --modality than flair' in result.stdout
    assert '5 predicted by otsu' in result.stdout
    masks = tmp_path / 'masks'
    assert list(snapshot(masks)) == ['a.png', 'deep/er/a.png', 'deep/head.nii.gz',
                                     'deep/x-t2f.nii.gz', 'predictions.csv', 'ä b.png']
    assert Image.open(masks / 'deep' / 'er' / 'a.png').size == (90, 50)
    rows = read_csv(masks / 'predictions.csv')
    assert sorted(row['file'] for row in rows if not row['slice']) == [
        'a.jpg', 'deep/er/a.png', 'deep/head.nii.gz', 'deep/x-t2f.nii', 'ä b.png']


def test_where_masks_go_and_what_exists_is_replaced_only_on_request(predict, tmp_path):
    draw_images(tmp_path / 'in', ['a.png', 'b.png'], size=(50, 30), bright_square=True)
    paths = ['--input', 'in', '--output', 'out']
    assert predict(*paths).returncode == 0
    assert_one_line_error(predict(*paths), 'out/predictions.csv exists already', '--overwrite True')
    (tmp_path / 'out' / 'mine.txt').write_text('mine')
    assert predict(*paths, '--overwrite', 'True').returncode == 0
    assert list(snapshot(tmp_path / 'out')) == ['a.png', 'b.png', 'mine.txt', 'predictions.csv']
    (tmp_path / 'mask.csv').write_text('precious')
    for more in ([], ['--overwrite', 'True']):
        assert_one_line_error(predict('--input', 'in/a.png', '--output', 'mask.png', *more),
                              'mask.csv')
    assert (tmp_path / 'mask.csv').read_text() == 'precious'
    # one image goes to a file or into a folder
    for output in ('new/mask.png', 'new/folder'):
        assert predict('--input', 'in/a.png', '--output', output).returncode == 0
    assert list(snapshot(tmp_path / 'new')) == ['folder/a.png', 'folder/predictions.csv',
                                                'mask.csv', 'mask.png']
    assert Image.open(tmp_path / 'new' / 'mask.png').size == (50, 30)


# --input, --output, more flags, a file of the user that would be lost
LOSSES = [('scan.png', 'scan.PNG', [], 'scan.png'),
          ('x_probability.png', 'x.png', ['--probability'], 'x_probability.png'),
          ('scan.png', 'mask.PNG', [], 'mask.png'), ('scan.png', 'mask.png', [], 'Mask.PNG'),
          ('scan.png', 'm.png', ['--probability'], 'm_probability.png'),
          ('scan.png', 'm.png', [], 'M.csv'),
          ('head.nii.gz', 'm.NII.GZ', [], 'm.nii.gz'),
          ('head.nii.gz', 'm.nii', ['--probability'], 'm_probability.nii'),
          ('scan.png', 'link.png', [], 'link.png'), ('scan.png', 'old', [], 'old/x.png'),
          ('deep', '.', ['--overwrite'], 'deep/deep/a.png')]


@pytest.mark.parametrize('source, output, more, lost', LOSSES)
def test_no_file_of_the_user_is_written_over(predict, tmp_path, source, output, more, lost):
    draw_images(tmp_path, ['scan.png', 'x_probability.png'])
    store(tmp_path / 'head.nii.gz', head())
    if lost == 'link.png':
        (tmp_path / lost).symlink_to(tmp_path / 'nowhere.png')
    elif not (tmp_path / lost).exists():
        draw_images((tmp_path / lost).parent, ['a.png'])
        (tmp_path / lost).write_bytes((tmp_path / lost).parent.joinpath('a.png').read_bytes())
    before = snapshot(tmp_path)
    assert_one_line_error(predict('--input', source, '--output', output, *more), '--output')
    assert snapshot(tmp_path) == before
    if '/' not in lost and source != lost:  # what is not an input gives way if asked
        result = predict('--input', source, '--output', output, '--overwrite', *more)
        if lost == 'M.csv':
            assert snapshot(tmp_path)[lost] == before[lost]
        assert result.returncode == 0 and not (tmp_path / 'nowhere.png').exists(), result.stderr


def test_inputs_behind_links_stay(predict, checkpoint, tmp_path):
    draw_images(tmp_path / 'store' / 'c1', ['x.png', 'y.jpg', 'y.png'])
    (tmp_path / 'subset').mkdir()
    (tmp_path / 'subset' / 'c1').symlink_to('../store/c1')
    (tmp_path / 'out').mkdir()
    shutil.copy(checkpoint, tmp_path / 'out' / 'x.png')
    before = snapshot(tmp_path)
    for more in ([], ['--overwrite', 'True']):
        assert_one_line_error(predict('--input', 'subset', '--output', 'store', *more),
                              'is read' if more else 'holds files already')
        assert_one_line_error(predict('--input', 'store/c1', '--output', 'out', *more,
                                      '--checkpoint', 'out/x.png'), '--output')
    assert snapshot(tmp_path) == before


def test_a_volume_that_fails_is_listed_and_the_others_go_on(predict, tmp_path):
    (tmp_path / 'in').mkdir()
    for name in ('a.nii', 'b.nii'):
        store(tmp_path / 'in' / name, head())
    store(tmp_path / 'in' / 'flat.nii', head()[:, 15:16], spacing=(1, 0.5, 3))
    image = nifti.Volume.image

    def broken(volume, z):
        if volume.path.name == 'a.nii':
            raise IndexError('no such\nvoxel')
        return image(volume, z)
    with mock.patch.object(nifti.Volume, 'image', broken):
        result = predict('--input', 'in', '--output', 'out')
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    assert 'in/a.nii: cannot be predicted (IndexError no such voxel)\n' in result.stderr
    assert 'in/flat.nii: no slice holds enough head, so none was segmented' in result.stderr
    assert names(tmp_path / 'out') == ['b.nii.gz', 'flat.nii.gz', 'predictions.csv']


def test_endings_stay_as_given_and_names_beside_too(predict, tmp_path):
    draw_images(tmp_path, ['a.png'], bright_square=True)
    store(tmp_path / 'v.1.nii', head())
    (tmp_path / '.mask6.png').write_text('mine')
    for source, output in (('a.png', 'out/mask.PNG'), ('v.1.nii', 'out/v.2.NII.GZ'),
                           ('v.1.nii', 'out/v.3.Nii')):
        assert predict('--input', source, '--output', output, '--probability').returncode == 0
    assert names(tmp_path / 'out') == ['mask.PNG', 'mask.csv', 'mask_probability.PNG',
                                       'v.2.NII.GZ', 'v.2.csv', 'v.2_probability.NII.GZ',
                                       'v.3.Nii', 'v.3.csv', 'v.3_probability.Nii']
    assert (tmp_path / 'out' / 'v.2.NII.GZ').read_bytes()[:2] == bytes((0x1f, 0x8b))
    assert (tmp_path / '.mask6.png').read_text() == 'mine'


def test_of_two_that_share_a_place_one_is_left_out_and_named(predict, tmp_path):
    long = 'x' * 240
    draw_images(tmp_path / 'in', ['a.png', 'a_probability.png', 'B.png', 'b.png', f'{long}.png'])
    draw_images(tmp_path / 'in' / 'c.png', ['d.png'])
    draw_images(tmp_path / 'in', ['c.jpg'])
    draw_images(tmp_path / 'in' / 'predictions.csv', ['d.png'])
    (tmp_path / 'in' / 'X.nii.gz').mkdir()
    for name in ('X.nii', 'X.nii.gz/X.nii'):
        store(tmp_path / 'in' / name, head())
    result = predict('--input', 'in', '--output', 'out', '--probability')
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    for part in ('in/c.png/d.png: its masks would take the place of those of c.jpg',
                 'in/predictions.csv/d.png: its masks would take the place of the table',
                 'in/X.nii.gz/X.nii: its masks would take the place of those of X.nii'):
        assert part in result.stderr
    for part in ('in/a_probability.png: its masks would take the place of those of a.png',
                 'in/b.png: its masks', f'{long}.png: the names of its masks would be too long'):
        assert part in result.stderr
    assert names(tmp_path / 'out') == [
        'B.png', 'B_probability.png', 'X.nii.gz', 'X_probability.nii.gz', 'a.png',
        'a_probability.png', 'c.png', 'c_probability.png', 'predictions.csv']


def test_after_a_kill_overwrite_goes_on_and_nothing_half_written_stays(predict, tmp_path):
    draw_images(tmp_path / 'in', ['a.png', 'b.png'])
    paths = ['--input', 'in', '--output', 'out', '--overwrite']
    write, seen = Image.Image.save, []

    def killed(image, path, *arguments):  # what the disk holds while the second mask is written
        write(image, path, *arguments)
        seen.append(path)
        if len(seen) == 2:
            shutil.copytree(tmp_path / 'out', tmp_path / 'killed')
    with mock.patch.object(Image.Image, 'save', killed):
        assert predict(*paths).returncode == 0
    shutil.rmtree(tmp_path / 'out')
    (tmp_path / 'killed').rename(tmp_path / 'out')
    (tmp_path / 'out' / '.tmp_mine').touch()
    assert len(names(tmp_path / 'out')) == 3  # one mask, one half written, no table
    assert predict(*paths).returncode == 0
    assert names(tmp_path / 'out') == ['.tmp_mine', 'a.png', 'b.png', 'predictions.csv']
    (tmp_path / 'out' / 'predictions.csv').write_text('')  # as an earlier version left it
    assert predict(*paths).returncode == 0
    with locked(tmp_path / 'out'):
        assert_one_line_error(predict(*paths), 'out', 'in use by process', '--output')


@pytest.mark.parametrize('kind', ('png', 'nii'))
def test_interrupted_it_says_what_is_whole_and_how_to_go_on(predict, tmp_path, kind):
    (tmp_path / 'in').mkdir()
    if kind == 'png':
        draw_images(tmp_path / 'in', ['a.png', 'b.png', 'c.png'])
    else:
        for name in 'abc':
            store(tmp_path / 'in' / f'{name}.nii', head()[..., 8:12])
    paths, write, seen = ['--input', 'in', '--output', 'out'], PredictionWriter._write_masks, []

    def stopped(writer, *arguments):
        if seen:
            raise KeyboardInterrupt('SIGTERM')
        seen.append(write(writer, *arguments))
    with mock.patch.object(PredictionWriter, '_write_masks', stopped):
        result = predict(*paths)
    assert result.returncode == 130
    assert result.stderr.splitlines()[-2:] == [
        '1 of 3 are predicted; their masks are whole, and listed in out/predictions.csv; the same '
        'command with --overwrite True begins anew', 'interrupted']
    assert {row['file'] for row in read_csv(tmp_path / 'out' / 'predictions.csv')} == {f'a.{kind}'}
    assert predict(*paths, '--overwrite', 'True').returncode == 0


def test_a_volume(predict, tmp_path):
    path = store(tmp_path / 'p_seg.nii', head(), (2, 0, 1), (1, -1, 1), oblique=True)
    result = predict('--input', path, '--output', 'mask.nii.gz', '--probability', 'True')
    assert result.returncode == 0, result.stderr
    assert 'p_seg.nii: by its name a label, which in a folder is skipped' in result.stdout
    source, mask, soft = (nibabel.load(tmp_path / name) for name in (
        'p_seg.nii', 'mask.nii.gz', 'mask_probability.nii.gz'))
    for written in (mask, soft):
        assert written.shape == source.shape
        np.testing.assert_allclose(written.affine, source.affine)
    voxels = np.asarray(mask.dataobj)
    assert mask.get_data_dtype() == np.uint8 and set(np.unique(voxels)) <= {0, 1} and voxels.any()
    assert soft.get_data_dtype() == np.float32
    assert 0 <= soft.get_fdata().min() <= soft.get_fdata().max() <= 1
    *slices, whole = read_csv(tmp_path / 'mask.csv')
    assert int(whole['lesion_px']) == voxels.sum() == sum(int(row['lesion_px']) for row in slices)
    assert float(whole['lesion_ml']) == pytest.approx(voxels.sum() * 1 * 2 * 3 / 1000, abs=1e-4)
    assert [int(row['slice']) for row in slices] == list(range(2, 18))  # those that hold the head
    assert float(slices[0]['lesion_mm2']) == pytest.approx(2 * int(slices[0]['lesion_px']))


def test_turned_photos_links_and_masks_beside_images(predict, tmp_path):
    source, turned = tmp_path / 'in', Image.Exif()
    turned[274] = 6
    draw_images(tmp_path / 'store', ['s.png'])
    draw_images(source, ['a.jfif', 'b.png'])
    Image.new('L', (40, 36), 255).save(source / 'a_mask.jfif', 'jpeg')
    Image.open(source / 'b.png').save(source / 'b.png', exif=turned)
    draw_images(source / 'Thumbs', ['a.png'])
    (source / 'linked').symlink_to(tmp_path / 'store')
    (source / 'gone.png').symlink_to('nowhere')
    result = predict('--input', source, '--output', 'masks')
    assert result.returncode == 1 and 'gone.png: a link that leads nowhere' in result.stderr
    assert 'skipped: 1 in folders of thumbnails or deleted files, 1 named as masks are' in (
        result.stdout)
    assert list(snapshot(tmp_path / 'masks')) == ['a.png', 'b.png', 'linked/s.png',
                                                  'predictions.csv']
    assert Image.open(tmp_path / 'masks' / 'b.png').size == (36, 40)


@pytest.mark.parametrize('arguments, parts', (
    ('', ['--input', 'needs it']),
    ('--input a.png', ['--output', 'needs it']),
    ('--input a.png --input b.png --output out', ['--input', 'takes one file or folder']),
    ('--input absent.png --output out', ['absent.png', 'no such file or folder']),
    ('--input . --output masks', ['masks', 'lies in --input']),
    ('--input a.png --output a.png', ['a.png', 'write over --input']),
    ('--input a.png --output .', ['write over --input']),
    ('--input . --output .', ['write over --input']),
    ('--input . --output mask.png', ['mask.png', 'give a folder']),
    ('--input a.png --output mask.nii', ['mask.nii', '.png']),
    ('--input a.png --output mask.jpg', ['mask.jpg', 'neither a folder', '.png for images']),
    ('--input empty --output new/deep/out', ['empty', 'holds no images']),
    ('--input broken.png --output out', ['broken.png', 'cannot be read as an image']),
    (f'--input {"x" * 300} --output out', ['x' * 300, 'too long']),
    ('--input a.png --output out --checkpoint x.pt', ['x.pt']),
    ('--input a.png --output out --stage 2', ['no checkpoint of stage 2']),
    ('--input a.png --output out --postprocess none', ['--probability True']),
))
def test_bad_input(predict, tmp_path, arguments, parts):
    draw_images(tmp_path, ['a.png'])
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'broken.png').write_bytes(b'broken')
    before = snapshot(tmp_path)
    assert_one_line_error(predict(*arguments.split()), *parts)
    assert snapshot(tmp_path) == before and not (tmp_path / 'new').exists()


def test_the_network_has_to_be_named_and_trained(tmp_path):
    draw_images(tmp_path, ['a.png'])
    for phase in (['predict', '--input', tmp_path / 'a.png', '--output', tmp_path / 'out'],
                  ['export']):
        assert_one_line_error(run_here(
            '--dataset', 'mine', '--result_dir', tmp_path, '--data_root', tmp_path, '--phase',
            *phase), 'nothing is trained for mine', 'mine/model*/best.pt', '--phase train first')
    for phase in (['predict', '--input', 'a.png', '--output', 'out'], ['export']):
        assert_one_line_error(run_here('--phase', *phase), '--dataset', '--checkpoint')


def test_arrays_of_any_size_in_order(predictor):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, shape, dtype=np.uint8) for shape in (
        (40, 36, 3), (31, 77, 3), (50, 50), (20, 90, 1), *[(32, 32, 3)] * 20)]
    together = predictor.predict(images)
    for image, mask in zip(images, together, strict=True):
        assert mask.shape == image.shape[:2] and mask.dtype == bool
    for number in (0, 1, 2, 3, 23):
        np.testing.assert_array_equal(predictor.predict([images[number]])[0], together[number])
    stacked = predictor.predict(np.stack(images[4:]))
    np.testing.assert_array_equal(np.stack(stacked), np.stack(together[4:]))
    for probability in predictor.probabilities(images):
        assert probability.dtype == np.float32
        assert 0 <= probability.min() <= probability.max() <= 1
    assert predictor.predict([]) == []


def test_bad_arguments(predictor, checkpoint, tmp_path):
    for image in (np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8),
                  np.zeros((2, 8, 8, 3), np.uint8), np.zeros((0, 8), np.uint8)):
        with pytest.raises(ValueError, match='uint8'):
            predictor.predict([image])
    for shape in ((20, 30, 3), (20, 30)):  # one image without a list
        with pytest.raises(ValueError, match='list'):
            predictor.predict(np.zeros(shape, np.uint8))
    (tmp_path / 'x.pt').write_text('x')
    for path, options, part in ((checkpoint, {'foo': 1}, 'foo'),
                                (checkpoint, {'postprocess': 'foo'}, 'foo'),
                                (tmp_path / 'x.pt', {}, 'not a checkpoint')):
        with pytest.raises(UserError, match=part):
            Predictor(path, 'cpu', **options)


def test_known_answer_and_presence_threshold(checkpoint):
    predictor = bright_is_lesion(checkpoint, 0.6)
    image = np.zeros((64, 64, 3), np.uint8)
    image[16:32, 8:24] = 255
    np.testing.assert_array_equal(predictor.predict([image])[0], image[..., 0] > 0)
    certain = predictor.network.predict_mask
    predictor.network.predict_mask = lambda image: MaskPrediction(0.4 * certain(image).mask)
    predictor.rule = 'otsu'  # which on its own would separate them
    empty = next(predictor.predict_each([image]))
    assert not empty.segmentation.any()
    assert empty.note == 'highest soft value 0.40, below --presence_threshold 0.5'
    predictor.config = replace(predictor.config, presence_threshold=0.3)
    np.testing.assert_array_equal(predictor.predict([image])[0], image[..., 0] > 0)
    predictor.rule = 'threshold'
    assert 'value 0.40, but --postprocess threshold leaves nothing' in next(
        predictor.predict_each([image])).note


def test_an_empty_segmentation_says_why(predict, tmp_path):
    draw_images(tmp_path / 'in', [f'{number}.png' for number in range(7)])
    store(tmp_path / 'in' / 'head.nii', head())
    result = predict('--input', 'in', '--output', 'out', '--presence_threshold', 1)
    assert result.stdout.count('below --presence_threshold 1\n') == 5
    assert 'empty: 0.png: highest soft value 0.' in result.stdout
    assert '… and 3 more; see the column note' in result.stdout
    rows = read_csv(tmp_path / 'out' / 'predictions.csv')
    assert len(rows) == 8 and all('highest soft value' in row['note'] for row in rows)


# highest soft value of each slice, and which hold a lesion by a threshold of 0.5
VOLUMES = (([.2, .6, .9, .99, .7, .3, .7, .2], [0, 1, 1, 1, 1, 0, 0, 0]),
           ([.1, .7, .1, .6, .1], [0, 1, 0, 1, 0]), ([.1, .49], [0, 0]), ([], []),
           ([.9, .1, .9], [1, 0, 1]), ([.5, .5], [1, 1]))


@pytest.mark.parametrize('highest, present', VOLUMES)
def test_presence_is_decided_per_volume_and_slice(highest, present):
    assert slices_with_lesion(np.array(highest), 0.5).tolist() == list(map(bool, present))
    assert slices_with_lesion(np.array(highest), 0).all()


def test_a_slice_less_sure_than_its_volume_stays_empty(checkpoint, tmp_path):
    predictor = bright_is_lesion(checkpoint, 0.75, img_size=64)
    certain, seen = predictor.network.predict_mask, []

    def surer_from_slice_to_slice(image):
        masks = certain(image).mask.clone()
        for mask in masks:  # slices 2 to 17; the spot is in 8 to 12
            seen.append(len(seen))
            mask *= 1 if seen[-1] in (7, 8, 9) else 0.6
        return MaskPrediction(masks)
    predictor.network.predict_mask = surer_from_slice_to_slice
    values = np.kron(head(), np.ones((2, 2, 1), np.float32))
    values[36:46, 52:64, 15] = 400
    volume = nifti.read(store(tmp_path / 'head.nii', values))
    predictor.rule = 'otsu'
    segmentation, _, note = predict_volume(predictor, volume)
    assert np.flatnonzero(segmentation.any((0, 1))).tolist() == [8, 9, 10, 11, 12]
    assert note.startswith('left empty, as soft values are higher elsewhere') and '15' in note


def test_that_the_crf_is_slow_in_volumes_is_said(capsys):
    for rule, volumes in (('otsu', 2), ('crf', 0), ('crf', 2)):
        assert not capsys.readouterr().out
        say_what_is_slow(rule, volumes)
    assert '--postprocess crf is slow in volumes' in capsys.readouterr().out


def test_known_answer_in_a_volume(checkpoint, tmp_path):
    predictor = bright_is_lesion(checkpoint, 0.75, img_size=64)
    values = np.kron(head(), np.ones((2, 2, 1), np.float32))
    volume = nifti.read(store(tmp_path / 'head.nii', values, (1, 2, 0), (-1, 1, -1)))
    segmentation, probability, _ = predict_volume(predictor, volume)
    spot = values == 400
    assert (segmentation.astype(bool) & spot).sum() > 0.8 * spot.sum()
    assert (segmentation.astype(bool) & ~spot).sum() < 0.2 * spot.sum()
    assert probability[spot].mean() > 0.9 > 0.1 > probability[~spot].mean()
