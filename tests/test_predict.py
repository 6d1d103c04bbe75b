"""Masks of any pictures and volumes, from the command line and from Python."""
import csv

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from conftest import STAGE_1, TINY_FLAGS, Places, assert_one_line_error, command, draw
from networks import MaskPrediction
from predict import Segmenter
from test_volumes import head, store
from utils import UserError


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A data set, and a run of two iterations on it."""
    import conftest

    folder = tmp_path_factory.mktemp('trained')
    places = Places(conftest.data_root.__wrapped__(folder), folder)
    places.done(*TINY_FLAGS, *STAGE_1, '--iteration', 2, '--batch_size', 1, '--flips', 'True')
    return places


@pytest.fixture
def predict(trained, tmp_path, monkeypatch):
    """--phase predict with a trained checkpoint, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return trained.run('--phase', 'predict', '--presence', 0, *arguments)
    return run


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


def table(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def bright_is_lesion(segmenter, level=0.6):
    """Put a known answer in the place of the network: 1 where the picture is bright, else 0."""
    segmenter.settings = type(segmenter.settings)(**vars(segmenter.settings) | {'flips': False})
    segmenter.network.predict_mask = lambda image: MaskPrediction(
        (image.mean(1, keepdim=True) > 2 * level - 1).float())
    return segmenter


# ------------------------------------------------------------------------------- command line


def test_a_folder_as_test_segments_it(predict, trained, tmp_path):
    trained.done('--phase', 'test')
    given = trained.data / 'testA'
    done = predict('--input', given, '--output', tmp_path / 'out', '--probability')
    assert done.returncode == 0, done.stderr
    tested = trained.results / 'test1' / 'best'
    assert files(tmp_path / 'out') == ['predictions.csv', *sorted(
        f'{stem}{end}.png' for stem in ('t0', 't1', 't2') for end in ('', '_probability'))]
    for row in table(tmp_path / 'out' / 'predictions.csv'):
        name = row['file']
        made, expected = (np.asarray(Image.open(path)) for path in (
            tmp_path / 'out' / name, tested / 'segmentation' / name))
        np.testing.assert_array_equal(made, expected)
        assert int(row['lesion_px']) == (made == 255).sum() and set(np.unique(made)) <= {0, 255}
        assert float(row['lesion_percent']) == pytest.approx(100 * (made == 255).mean(), abs=1e-3)
        assert row['lesion_mm2'] == row['lesion_ml'] == ''  # a picture's spacing is not known
        np.testing.assert_array_equal(
            np.asarray(Image.open(tmp_path / 'out' / name.replace('.', '_probability.'))),
            np.asarray(Image.open(tested / 'mask' / name)))


def test_folders_in_folders_and_what_cannot_be_read(predict, tmp_path):
    given = tmp_path / 'in'
    draw(given, ['a.jpg', 'ä b.png'], bright_square=True)
    draw(given / 'deep' / 'er', ['a.png'], size=(90, 50))
    draw(given / '.hidden', ['h.png'])
    (given / 'notes.txt').write_text('no picture')
    (given / 'deep' / 'broken.png').write_bytes(b'\x89PNG broken')
    (given / 'a.png').write_bytes((given / 'ä b.png').read_bytes())  # of one name with a.jpg
    store(given / 'deep' / 'head.nii.gz', head())
    (given / 'deep' / 'cut.nii').write_bytes(b'short')
    draw(given / 'labels', ['a_Segmentation.png'])
    for name in ('x_seg.nii.gz', 'x_t1.nii', 'x-t2f.nii'):  # as BraTS names them
        store(given / 'deep' / name, head())
    done = predict('--input', given, '--output', 'masks')
    assert done.returncode == 1
    for name in ('broken.png', 'cut.nii', 'a.png: named as a.jpg is'):
        assert name in done.stderr
    assert 'passed over: 2 labels, 1 of another --modality than flair' in done.stdout
    masks = tmp_path / 'masks'
    assert files(masks) == ['a.png', 'deep/er/a.png', 'deep/head.nii.gz', 'deep/x-t2f.nii.gz',
                            'predictions.csv', 'ä b.png']
    assert Image.open(masks / 'deep' / 'er' / 'a.png').size == (90, 50)
    whole = [row['file'] for row in table(masks / 'predictions.csv') if not row['slice']]
    assert sorted(whole) == ['a.jpg', 'deep/er/a.png', 'deep/head.nii.gz', 'deep/x-t2f.nii', 'ä b.png']


def test_what_is_there_already_stays_unless_it_may_go(predict, tmp_path):
    draw(tmp_path / 'in', ['a.png', 'b.png'], bright_square=True)
    line = ['--input', 'in', '--output', 'out']
    assert predict(*line).returncode == 0
    assert_one_line_error(predict(*line), 'predictions.csv is there already', '--overwrite True')
    (tmp_path / 'out' / 'mine.txt').write_text('mine')
    assert predict(*line, '--overwrite', 'True').returncode == 0
    assert files(tmp_path / 'out') == ['a.png', 'b.png', 'mine.txt', 'predictions.csv']
    (tmp_path / 'mask.csv').write_text('precious')
    for more in ([], ['--overwrite', 'True']):
        assert_one_line_error(predict('--input', 'in/a.png', '--output', 'mask.png', *more), 'mask.csv')
    assert (tmp_path / 'mask.csv').read_text() == 'precious'


def test_one_picture_to_a_file_or_a_folder(predict, tmp_path):
    draw(tmp_path, ['one.jpg'], size=(50, 30), bright_square=True)
    assert predict('--input', 'one.jpg', '--output', 'new/mask.png').returncode == 0
    assert predict('--input', 'one.jpg', '--output', 'folder').returncode == 0
    assert files(tmp_path) == ['folder/one.png', 'folder/predictions.csv', 'new/mask.csv',
                               'new/mask.png', 'one.jpg']
    assert Image.open(tmp_path / 'new' / 'mask.png').size == (50, 30)


def test_a_volume(predict, tmp_path):
    given = store(tmp_path / 'head.nii', head(), (2, 0, 1), (1, -1, 1), oblique=True)
    done = predict('--input', given, '--output', 'mask.nii.gz', '--probability', 'True')
    assert done.returncode == 0, done.stderr
    source, mask, soft = (nibabel.load(tmp_path / name) for name in (
        'head.nii', 'mask.nii.gz', 'mask_probability.nii.gz'))
    for made in (mask, soft):
        assert made.shape == source.shape
        np.testing.assert_allclose(made.affine, source.affine)
    voxels = np.asarray(mask.dataobj)
    assert mask.get_data_dtype() == np.uint8 and set(np.unique(voxels)) <= {0, 1} and voxels.any()
    assert soft.get_data_dtype() == np.float32 and 0 <= soft.get_fdata().min() <= soft.get_fdata().max() <= 1
    *slices, whole = table(tmp_path / 'mask.csv')
    assert int(whole['lesion_px']) == voxels.sum() == sum(int(row['lesion_px']) for row in slices)
    assert float(whole['lesion_ml']) == pytest.approx(voxels.sum() * 1 * 2 * 3 / 1000, abs=1e-4)
    assert [int(row['slice']) for row in slices] == list(range(2, 18))  # those that hold the head
    assert float(slices[0]['lesion_mm2']) == pytest.approx(2 * int(slices[0]['lesion_px']))


WRONG = {
    'nothing to read': ([], ['--input', 'needs it']),
    'nowhere to write': (['--input', 'a.png'], ['--output', 'needs it']),
    'missing': (['--input', 'absent.png', '--output', 'out'], ['absent.png', 'no such file or folder']),
    'into the input': (['--input', '.', '--output', 'masks'], ['masks', 'lies in --input']),
    'onto itself': (['--input', 'a.png', '--output', 'a.png'], ['a.png', 'write over --input']),
    'beside itself': (['--input', 'a.png', '--output', '.'], ['write over --input']),
    'folder onto itself': (['--input', '.', '--output', '.'], ['write over --input']),
    'folder to a file': (['--input', '.', '--output', 'mask.png'], ['mask.png', 'give a folder']),
    'picture to a volume': (['--input', 'a.png', '--output', 'mask.nii'], ['mask.nii', '.png']),
    'another ending': (['--input', 'a.png', '--output', 'mask.jpg'], ['mask.jpg', 'neither a folder', '.png for pictures']),
    'no pictures': (['--input', 'empty', '--output', 'out'], ['empty', 'holds no pictures']),
    'no picture': (['--input', 'broken.png', '--output', 'out'], ['broken.png', 'cannot be read as a picture']),
    'too long': (['--input', 'x' * 300, '--output', 'out'], ['x' * 300, 'too long']),
    'no checkpoint': (['--input', 'a.png', '--output', 'out', '--checkpoint', 'x.pt'], ['x.pt']),
    'another stage': (['--input', 'a.png', '--output', 'out', '--stage', '2'], ['no checkpoint of stage 2']),
    'no rule': (['--input', 'a.png', '--output', 'out', '--postprocess', 'none'], ['--probability True']),
}


@pytest.mark.parametrize('arguments, parts', WRONG.values(), ids=WRONG)
def test_bad_input(predict, tmp_path, arguments, parts):
    draw(tmp_path, ['a.png'])
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'broken.png').write_bytes(b'broken')
    before = files(tmp_path)
    assert_one_line_error(predict(*arguments), *parts)
    assert files(tmp_path) == before


def test_whose_network_has_to_be_said(tmp_path):
    draw(tmp_path, ['a.png'])
    for phase in (['predict', '--input', tmp_path / 'a.png', '--output', tmp_path / 'out'], ['export']):
        assert_one_line_error(command('--phase', *phase, cwd=tmp_path), '--dataset', '--checkpoint')
    assert files(tmp_path) == ['a.png']


# -------------------------------------------------------------------------------- from Python


@pytest.fixture(scope='module')
def segmenter(trained):
    return Segmenter(trained.results / 'model1' / 'best.pt', 'cpu', presence=0, num_workers=0)


def test_arrays_of_any_size_in_order(segmenter):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, shape, dtype=np.uint8) for shape in (
        (40, 36, 3), (31, 77, 3), (50, 50), (20, 90, 1), *[(32, 32, 3)] * 20)]
    together = segmenter.predict(images)
    for image, mask in zip(images, together):
        assert mask.shape == image.shape[:2] and mask.dtype == bool
    for number in (0, 1, 2, 3, 23):
        np.testing.assert_array_equal(segmenter.predict([images[number]])[0], together[number])
    stacked = segmenter.predict(np.stack(images[4:]))
    np.testing.assert_array_equal(np.stack(stacked), np.stack(together[4:]))
    soft = segmenter.probabilities(images)
    assert all(one.dtype == np.float32 and 0 <= one.min() <= one.max() <= 1 for one in soft)
    assert segmenter.predict([]) == []


@pytest.mark.parametrize('image', (np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8),
                                   np.zeros((2, 8, 8, 3), np.uint8), np.zeros((0, 8), np.uint8)))
def test_what_is_no_picture(segmenter, image):
    with pytest.raises(ValueError, match='uint8'):
        segmenter.predict([image])


def test_one_picture_without_a_list_and_unknown_flags(segmenter, trained):
    for alone in (np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30), np.uint8)):
        with pytest.raises(ValueError, match='list'):
            segmenter.predict(alone)
    for flags in ({'foo': 1}, {'postprocess': 'foo'}):
        with pytest.raises(UserError, match='foo'):
            Segmenter(trained.results / 'model1' / 'best.pt', 'cpu', **flags)


def test_files_that_are_no_checkpoint(tmp_path):
    (tmp_path / 'x.pt').write_text('x')
    with pytest.raises(UserError, match='not a checkpoint'):
        Segmenter(tmp_path / 'x.pt')


def test_known_answer_and_presence(trained):
    segmenter = bright_is_lesion(Segmenter(trained.results / 'model1' / 'best.pt', 'cpu',
                                           postprocess='threshold'))
    image = np.zeros((64, 64, 3), np.uint8)
    image[16:32, 8:24] = 255
    np.testing.assert_array_equal(segmenter.predict([image])[0], image[..., 0] > 0)
    faint = segmenter.network.predict_mask
    segmenter.network.predict_mask = lambda image: MaskPrediction(0.4 * faint(image).mask)
    segmenter.rule = 'otsu'  # which alone would part them
    assert not segmenter.predict([image])[0].any()
    segmenter.settings = type(segmenter.settings)(**vars(segmenter.settings) | {'presence': 0.3})
    np.testing.assert_array_equal(segmenter.predict([image])[0], image[..., 0] > 0)


def test_known_answer_in_a_volume(trained, tmp_path):
    import volumes
    from predict import predict_volume

    segmenter = bright_is_lesion(Segmenter(trained.results / 'model1' / 'best.pt', 'cpu',
                                           postprocess='threshold', img_size=64), level=0.75)
    values = np.kron(head(), np.ones((2, 2, 1), np.float32))
    volume = volumes.read(store(tmp_path / 'head.nii', values, (1, 2, 0), (-1, 1, -1)))
    segmentation, probability = predict_volume(segmenter, volume)
    spot = values == 400
    assert (segmentation.astype(bool) & spot).sum() > 0.8 * spot.sum()
    assert (segmentation.astype(bool) & ~spot).sum() < 0.2 * spot.sum()
    assert probability[spot].mean() > 0.9 > 0.1 > probability[~spot].mean()


def test_stage_2_as_published_looks_at_the_stage_1_mask(trained, tmp_path):
    trained.done(*TINY_FLAGS, '--recipe', 'published', '--stage', 2, '--iteration', 1, '--batch_size', 1)
    segmenter = Segmenter(trained.results / 'model2' / 'best.pt', 'cpu', presence=0)
    assert segmenter.before is not None
    trained.done('--phase', 'test', '--stage', 2, '--postprocess', 'otsu')
    picture = trained.data / 'testA' / 't0.png'
    soft = segmenter.probabilities([np.asarray(Image.open(picture))])[0]
    tested = np.asarray(Image.open(trained.results / 'test2' / 'best' / 'mask' / 't0.png'))
    np.testing.assert_allclose(255 * soft, tested, atol=1.5)
    assert torch.is_grad_enabled()
