"""Data sets made of what people download: NIfTI trees, dermoscopy archives, folders."""
import itertools
import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

import artefacts
import phantom
import prepare
from conftest import Places, assert_one_line_error, draw, draw_labels
from test_volumes import store

SHAPE = 24, 28, 16  # voxels to the right, to the front, upwards
LESIONS = {5: 8, 6: 8, 7: 8, 8: 2}  # slice -> side in voxels; slices 2 … 13 hold head
NORMAL = set(range(2, 14)) - set(LESIONS)


@pytest.fixture
def places(tmp_path):
    """The program, preparing the set `Made` under tmp_path/data at 64 px."""
    program = Places(tmp_path / 'data', tmp_path)
    program.data = tmp_path / 'data' / 'Made'
    program.flags = ['--phase', 'prepare', '--dataset', 'Made', '--data_root', tmp_path / 'data',
                     '--img_size', 64]
    return program


def head(seed=0):
    values = np.zeros(SHAPE, np.float32)
    values[3:21, 3:25, 2:14] = np.random.default_rng(seed).uniform(60, 120, (18, 22, 12))
    return values


def lesion(slices=LESIONS):
    values = np.zeros(SHAPE, np.float32)
    for z, side in slices.items():
        values[6:6 + side, 8:8 + side, z] = 4  # the tumour's own classes are 1, 2 and 4
    return values


def store_case(folder, name, slices=LESIONS, ending='.nii.gz', seg='_seg', kinds=('_flair',), **how):
    folder.mkdir(parents=True, exist_ok=True)
    for number, kind in enumerate(kinds):
        store(folder / f'{name}{kind}{ending}', head(number), **how)
    if seg:
        store(folder / f'{name}{seg}{ending}', lesion(slices), **how)


@pytest.fixture
def tree(tmp_path):
    """A tree like those of BraTS 2018 to 2020, whose files differ in all that may differ."""
    root = tmp_path / 'downloaded'
    store_case(root / 'HGG' / 'Brats18_A_1', 'Brats18_A_1', kinds=('_flair', '_t1ce'))
    store_case(root / 'HGG' / 'Brats18_B_1', 'Brats18_B_1', ending='.nii')
    store_case(root / 'HGG' / 'C', 'BraTS20_C', order=(2, 0, 1), signs=(1, -1, 1))
    store_case(root / 'LGG' / 'D', 'BraTS20_D', oblique=True)
    store_case(root / 'LGG' / 'E', 'BraTS20_E', slices={}, signs=(-1, -1, 1), ending='.nii')
    store_case(root / 'LGG' / 'F', 'BraTS20_F', seg='')  # no segmentation
    (root / 'LGG' / 'D' / 'BraTS20_D_seg.nii.gz').rename(root / 'LGG' / 'D' / 'W39_Segm.nii.gz')
    (root / 'name_mapping.csv').write_text('BraTS20_A,HGG\n')
    return root


def brats(places, tree, *more):
    return places.run('--source', tree, '--source_format', 'brats', '--z_range', 'all', '--lesion_px', 100,
                      *more)


def names(folder):
    return {path.stem for path in folder.glob('*.png')}


def picture(path):
    return np.asarray(Image.open(path))


def snapshot(folder):
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob('*')) if path.is_file()}


# ------------------------------------------------------------------------------------------ brats


def test_slices_by_patient(places, tree):
    result = brats(places, tree, '--split', 0.5, 0.25, 0.25)
    assert result.returncode == 0, result.stderr
    told = json.loads((places.data / 'prepare.json').read_text())
    patients = {split: set(told['patients'][split]) for split in ('train', 'val', 'test')}
    assert len(set.union(*patients.values())) == sum(map(len, patients.values())) >= 4  # none twice
    assert all(patients.values())
    for folder, split in (('trainA', 'train'), ('trainB', 'train'), ('testA', 'test'),
                          ('testB', 'test'), ('val/images', 'val')):
        for stem in names(places.data / folder):
            case, z = re.fullmatch(r'(.+)_flair_(\d{3})', stem).groups()
            assert case in patients[split]
            assert int(z) in (NORMAL if folder.endswith('B')
                              else {z for z, side in LESIONS.items() if side == 8})
    assert len(list(places.data.glob('*A/*')) + list(places.data.glob('val/images/*'))) == 4 * 3
    assert len(names(places.data / 'trainB')) <= len(names(places.data / 'trainA'))
    assert not (places.data / 'train').exists()  # no labels to train on
    for labels, pictures in (('test/labels', 'testA'), ('val/labels', 'val/images')):
        stems = {stem.removesuffix('_segmentation') for stem in names(places.data / labels)}
        assert stems == names(places.data / pictures)
    # what was left out is told; the summary counts what is there
    assert list(told['left_out'].values()) == ['without a segmentation']
    assert 'BraTS20_F_flair.nii.gz' in next(iter(told['left_out']))
    assert '1 without a segmentation' in result.stdout and 'next: python main.py' in result.stdout
    for name, count in told['counts'].items():
        assert len(names(places.data / name)) == count and f'{count} {name}' in result.stdout


def test_pictures_and_labels_lie_on_each_other_however_stored(places, tree):
    """Every case has the same head and lesion, so all their prepared pictures are equal."""
    assert brats(places, tree, '--split', 0.01, 0, 0.99).returncode == 0
    tested = sorted((places.data / 'testA').glob('*_006.png'))
    assert len(tested) >= 3
    first = picture(tested[0])
    assert first.shape == (64, 64) and first.dtype == np.uint8
    for path in tested:
        np.testing.assert_array_equal(picture(path), first)
        label = picture(places.data / 'test' / 'labels' / f'{path.stem}_segmentation.png')
        assert set(np.unique(label)) == {0, 255}
        # where the lesion was drawn: the patient's left, to the front of the middle, 64 px a box side
        rows, columns = np.nonzero(label)
        volume = np.asarray(first > 0).nonzero()
        assert rows.min() > volume[0].min() and columns.max() < volume[1].max()
    label_px = (label > 0).sum()
    box = json.loads((places.data / 'prepare.json').read_text())['settings']
    assert box == {'seed': 0, 'img_size': [64, 64], 'split': [0.01, 0, 0.99], 'modality': 'flair',
                   'z_range': 'all', 'lesion_px': 100}
    longer = 22 * 2 * (1 + 2 * prepare.volumes.MARGIN)  # mm: 22 voxels of 2 mm to the front
    assert label_px == pytest.approx(8 * 1 / longer * 64 * 8 * 2 / longer * 64, rel=0.15)


def test_exact_counts(places, tree):
    assert brats(places, tree, '--split', 5, 3, 2).returncode == 0
    counts = json.loads((places.data / 'prepare.json').read_text())['counts']
    assert (counts['trainA'], counts['val/images'], counts['testA']) == (5, 3, 2)
    assert counts['val/labels'] == 3 and counts['test/labels'] == 2
    # evenly of all scans: the two patients of train differ by one slice at most
    per_case = [stem.rsplit('_', 1)[0] for stem in names(places.data / 'trainA')]
    assert sorted(map(per_case.count, set(per_case))) == [2, 3]
    result = brats(places, tree, '--split', 50, 3, 2, '--overwrite', True)
    assert_one_line_error(result, '--split 50 3 2', 'ask for fewer', 'fractions')
    assert json.loads((places.data / 'prepare.json').read_text())['counts'] == counts  # it has stayed


def test_slices_in_a_range(places, tree):
    brats(places, tree, '--split', 0.5, 0.25, 0.25, '--z_range', '6-12')
    every = [stem for folder in ('trainA', 'trainB', 'testA', 'testB', 'val/images')
             for stem in names(places.data / folder)]
    assert {int(stem[-3:]) for stem in every} <= set(range(6, 13)) and len(every) > 10
    assert {int(stem[-3:]) for stem in names(places.data / 'trainA')} == {6, 7}


@pytest.mark.parametrize('year, picked, kinds, seg', (
    (2021, 't2', ('_flair', '_t1', '_t1ce', '_t2'), '_seg'),
    (2023, 't2', ('-t2f', '-t1n', '-t1c', '-t2w'), '-seg')))
def test_the_modality_is_chosen(places, tmp_path, year, picked, kinds, seg):
    root = tmp_path / 'downloaded'
    for case in ('BraTS-GLI-00001-000', 'BraTS-GLI-00002-000', 'BraTS-GLI-00003-000'):
        store_case(root / case, case, kinds=kinds, seg=seg)
    result = brats(places, root, '--modality', picked, '--split', 3, 3, 3)
    assert result.returncode == 0, result.stderr
    ending = kinds[-1]
    assert all(f'{ending}_0' in stem for stem in names(places.data / 'trainA'))
    written = picture(next((places.data / 'trainA').glob('*_006.png')))
    volume = prepare.volumes.read(next(root.rglob(f'*{ending}.nii.gz')))
    expected = prepare.fit(Image.fromarray(volume.picture(6)), (64, 64))
    np.testing.assert_array_equal(written, np.asarray(expected))


def test_time_points_of_a_patient_stay_together(places, tmp_path):
    root = tmp_path / 'downloaded'
    for patient in range(4):
        for again in range(2):
            case = f'BraTS-GLI-0000{patient}-00{again}'
            store_case(root / case, case, kinds=('-t2f',), seg='-seg')
    assert brats(places, root, '--split', 0.5, 0.25, 0.25).returncode == 0
    split_of = {}
    for folder in ('trainA', 'testA', 'val/images'):
        for stem in names(places.data / folder):
            split_of.setdefault(stem[:len('BraTS-GLI-00000')], set()).add(folder)
    assert len(split_of) == 4 and all(len(splits) == 1 for splits in split_of.values())


def test_broken_volumes_are_left_out(places, tree):
    (tree / 'HGG' / 'Brats18_A_1' / 'Brats18_A_1_flair.nii.gz').write_bytes(b'no volume')
    shorter = nibabel.Nifti1Image(np.zeros((24, 28, 9), np.float32), np.eye(4))
    nibabel.save(shorter, tree / 'HGG' / 'Brats18_B_1' / 'Brats18_B_1_seg.nii')
    moved = nibabel.load(tree / 'LGG' / 'D' / 'W39_Segm.nii.gz')
    nibabel.save(nibabel.Nifti1Image(np.asarray(moved.dataobj), moved.affine + np.eye(4) * 0.5),
                 tree / 'LGG' / 'D' / 'W39_Segm.nii.gz')
    store_case(tree / 'HGG' / 'G', 'BraTS20_G')
    result = brats(places, tree, '--split', 0.5, 0, 0.5)
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    for part in ('Brats18_A_1_flair.nii.gz: cannot be read', 'Brats18_B_1_seg.nii: 24×28×9 voxels, but',
                 'W39_Segm.nii.gz: lies elsewhere'):
        assert part in result.stderr
    told = json.loads((places.data / 'prepare.json').read_text())
    assert len(told['left_out']) == 4
    made = {stem.split('_flair')[0] for stem in names(places.data / 'trainA') | names(places.data / 'testA')}
    assert made == {'BraTS20_C', 'BraTS20_G'}


# ------------------------------------------------------------------------------------------- isic


@pytest.fixture
def dermoscopy(tmp_path):
    """An archive like those of 2016 to 2018: 12 pictures, 10 of them with a segmentation."""
    root = tmp_path / 'ISIC-2017_Training_Data'
    root.mkdir()
    labels = tmp_path / 'ISIC-2017_Training_Part1_GroundTruth'
    labels.mkdir()
    drawn = (phantom.draw_skin(np.random.default_rng(seed), 128, True) for seed in itertools.count())
    without_dark_corners = ((image, label) for image, label in drawn if not artefacts.find(image))
    for number, (image, label) in zip(range(12), without_dark_corners):
        name = f'ISIC_{number:07}'
        Image.fromarray(image).resize((160, 120)).save(root / f'{name}.jpg', quality=95)
        if number < 10:
            ending = '_Segmentation' if number % 2 else '_segmentation'
            Image.fromarray(label).resize((160, 120), 0).save(labels / f'{name}{ending}.png')
    Image.new('RGB', (160, 120)).save(root / 'ISIC_0000001_superpixels.png')
    (root / 'attribution.txt').write_text('CC-0')
    return root, labels


def isic(places, dermoscopy, *more):
    return places.run('--source', *dermoscopy, '--source_format', 'isic', *more)


def test_dermoscopy(places, dermoscopy, monkeypatch):
    marked = {}

    def find(pixels):
        """One picture shows a ruler: which one is known by its pixels."""
        return ['ruler'] if pixels.tobytes() == marked.setdefault('it', pixels.tobytes()) else []
    monkeypatch.setattr(artefacts, 'find', find)
    monkeypatch.setattr(prepare, 'cores', lambda: 0)  # in order, so that the first one is it
    result = isic(places, dermoscopy, '--split', 4, 3, 3)
    assert result.returncode == 0, result.stderr
    told = json.loads((places.data / 'prepare.json').read_text())
    assert sorted(told['left_out'].values()) == ['not needed for --split', 'ruler'] and '1 ruler' in result.stdout
    counts = told['counts']
    assert (counts['trainA'], counts['val/images'], counts['testA']) == (4, 3, 3)
    assert (counts['val/labels'], counts['test/labels']) == (3, 3)
    disease = names(places.data / 'trainA')
    assert not disease & names(places.data / 'testA')
    crops = names(places.data / 'trainB')
    assert crops and {crop.removesuffix('_health') for crop in crops} <= disease
    assert {crop.removesuffix('_health') for crop in names(places.data / 'testB')} <= names(
        places.data / 'testA')
    for path in places.data.rglob('*.png'):
        assert picture(path).shape[:2] == (64, 64)
    # labels are those of their pictures: the segmentation scaled, at most a rim apart
    for path in (places.data / 'test' / 'labels').iterdir():
        source = next(one for one in dermoscopy[1].iterdir() if one.stem.lower() == path.stem.lower())
        whole = np.asarray(Image.open(source).resize((64, 64))) > 127
        assert (whole == (picture(path) > 0)).mean() > 0.99
    again = places.done('--source', *dermoscopy, '--source_format', 'isic', '--split', 4, 3, 3,
                        '--overwrite', True)
    assert 'trainA' in again


def test_normal_corners_hold_no_lesion(places, dermoscopy):
    assert isic(places, dermoscopy, '--split', 0.5, 0.1, 0.4).returncode == 0
    crops = [picture(path).astype(float) for path in places.data.glob('*B/*_health.png')]
    assert len(crops) >= 5
    for path in places.data.glob('test/labels/*.png'):
        stem = path.stem.removesuffix('_segmentation')
        whole = picture(places.data / 'testA' / f'{stem}.png').astype(float)
        crop = places.data / 'testB' / f'{stem}_health.png'
        if crop.exists():
            darkness = whole[picture(path) > 0].mean()
            assert picture(crop).mean() > darkness  # the built-in lesions are darker than skin


def test_dermoscopy_without_segmentations(places, dermoscopy):
    result = places.run('--source', dermoscopy[0], '--source_format', 'isic', '--split', 8, 2, 2)
    assert result.returncode == 0, result.stderr
    assert 'val, which chooses by labels, stays empty' in result.stdout
    assert len(names(places.data / 'trainA')) == 8 and len(names(places.data / 'testA')) == 2
    assert names(places.data / 'trainB') and not (places.data / 'val').exists()
    assert not (places.data / 'test').exists()


def test_unlabelled_pictures_are_for_training(places, dermoscopy):
    assert isic(places, dermoscopy, '--split', 2, 5, 5).returncode == 0
    assert names(places.data / 'trainA') == {'ISIC_0000010', 'ISIC_0000011'}
    assert_one_line_error(isic(places, dermoscopy, '--split', 1, 6, 5, '--overwrite', True),
                          'only 1 for train, 5 for val, 5 for test')


# ---------------------------------------------------------------------------------------- folders


@pytest.fixture
def folders(tmp_path):
    draw(tmp_path / 'ill', [f'p{i}.png' for i in range(6)], (50, 40), bright_square=True)
    draw(tmp_path / 'ill' / 'more', ['p0.jpg', 'p1.bmp'], (64, 64), seed=5, bright_square=True)
    draw(tmp_path / 'well', [f'q{i}.tif' for i in range(8)], seed=2)
    draw_labels(tmp_path / 'labels', [f'p{i}' for i in range(4)], (50, 40))
    draw_labels(tmp_path / 'labels' / 'more', ['p0'], (64, 64))
    (tmp_path / 'labels' / 'p3_segmentation.png').rename(tmp_path / 'labels' / 'p3.png')
    return tmp_path / 'ill', tmp_path / 'well', tmp_path / 'labels'


def test_two_folders_and_labels(places, folders):
    result = places.run('--source', *folders, '--source_format', 'folders', '--split', 0.5, 0.25, 0.25)
    assert result.returncode == 0, result.stderr
    train, val, test = (names(places.data / name) for name in ('trainA', 'val/images', 'testA'))
    assert (len(train), len(val), len(test)) == (4, 2, 2)
    assert train | val | test == {f'p{i}' for i in range(6)} | {'more_p0', 'more_p1'}
    assert val | test <= {'p0', 'p1', 'p2', 'p3', 'more_p0'}  # those with labels
    for split, stems in (('val', val), ('test', test)):
        assert names(places.data / split / 'labels') == {f'{stem}_segmentation' for stem in stems}
    assert len(names(places.data / 'trainB')) + len(names(places.data / 'testB')) == 8
    assert names(places.data / 'testB')
    if 'more_p0' in val | test:  # 64×64 already: kept as it is
        folder = 'val/images' if 'more_p0' in val else 'testA'
        np.testing.assert_array_equal(picture(places.data / folder / 'more_p0.png'),
                                      picture(folders[0] / 'more' / 'p0.jpg'))


def test_two_folders_without_labels(places, folders):
    result = places.run('--source', *folders[:2], '--source_format', 'folders')
    assert result.returncode == 0, result.stderr
    assert len(names(places.data / 'trainA')) == 7 and len(names(places.data / 'testA')) == 1
    assert not (places.data / 'val').exists()


def test_names_that_macos_wrote(places, tmp_path):
    """There ä is two characters, here one."""
    draw(tmp_path / 'ill', ['f\u00e4ll.png', 'other.png'], bright_square=True)
    draw(tmp_path / 'well', ['n.png', 'm.png'])
    draw_labels(tmp_path / 'labels', ['fa\u0308ll'])
    places.done('--source', tmp_path / 'ill', tmp_path / 'well', tmp_path / 'labels', '--source_format',
                'folders', '--split', 1, 0, 1)
    assert names(places.data / 'test' / 'labels') == {'f\u00e4ll_segmentation'}
    assert names(places.data / 'testA') == {'f\u00e4ll'}


def test_a_set_laid_out_already_gives_the_same_figures(data_root, places, tmp_path):
    """Prepared at the size its pictures have, every picture, split and so every figure is the same."""
    tiny = data_root / 'Tiny'
    for path in tiny.rglob('*.png'):
        Image.open(path).resize((64, 64), 0).save(path)
    assert places.done('--source', tiny, '--source_format', 'folders')
    before = {name: picture(tiny / name) for name in snapshot(tiny)}
    after = {name: picture(places.data / name) for name in snapshot(places.data) if name[-4:] == '.png'}
    assert before.keys() == after.keys()
    for name, pixels in before.items():
        np.testing.assert_array_equal(pixels, after[name])
    train = ['--ch', 4, '--n_res', 1, '--img_size', 32, '--iteration', 2, '--stage', 0]
    figures = []
    for name in ('Tiny', 'Made'):
        program = Places(data_root, tmp_path)
        program.flags = ['--dataset', name, *program.flags[2:]]
        program.done('--phase', 'train', *train)
        program.done('--phase', 'test', '--stage', 0, '--pictures', False)
        figures.append(next((tmp_path / 'results' / name).rglob('metrics.csv')).read_bytes())
    assert figures[0] == figures[1] and figures[0].count(b'\n') == 3


# --------------------------------------------------------------------------------------- all formats


def test_the_seed_decides(places, folders, tree):
    def made(*flags):
        assert places.run(*flags, '--overwrite', True).returncode == 0
        return snapshot(places.data)
    for flags in (('--source', *folders, '--source_format', 'folders'),
                  ('--source', tree, '--source_format', 'brats', '--z_range', 'all', '--split', .4, .3, .3,
                   '--lesion_px', 100)):
        first = made(*flags)
        assert made(*flags) == first
        assert made(*flags, '--seed', 1).keys() != first.keys()


def test_nothing_is_overwritten_unasked(places, folders):
    flags = '--source', *folders, '--source_format', 'folders'
    places.data.mkdir(parents=True)  # an empty folder may be filled
    places.done(*flags)
    before = snapshot(places.data)
    assert_one_line_error(places.run(*flags, '--seed', 1), 'Made', '--overwrite True')
    assert snapshot(places.data) == before
    told = (places.data / 'prepare.json').read_text()
    (places.data / 'prepare.json').unlink()  # a folder of the user's own
    assert_one_line_error(places.run(*flags, '--overwrite', True), 'not made by --phase prepare')
    (places.data / 'prepare.json').write_text('{}')
    assert_one_line_error(places.run(*flags, '--overwrite', True), 'prepare.json', 'damaged')
    (places.data / 'prepare.json').write_text(told)
    (places.data / 'trainA' / 'own.png').write_text('')
    assert_one_line_error(places.run(*flags, '--overwrite', True), '1 file', 'trainA/own.png')
    (places.data / 'trainA' / 'own.png').unlink()
    next((places.data / 'trainA').iterdir()).unlink()
    places.done(*flags, '--overwrite', True)
    assert snapshot(places.data) == before  # nothing of the old one is left


def test_interrupted(places, folders, monkeypatch):
    """Nothing half made stays, and what was there does."""
    flags = '--source', *folders, '--source_format', 'folders'
    places.done(*flags)
    before = snapshot(places.data)
    kept = prepare.read_pair

    def interrupted(*arguments):
        if interrupted.left == 0:
            raise KeyboardInterrupt
        interrupted.left -= 1
        return kept(*arguments)
    interrupted.left = 3
    monkeypatch.setattr(prepare, 'cores', lambda: 0)
    monkeypatch.setattr(prepare, 'read_pair', interrupted)
    assert places.run(*flags, '--overwrite', True).returncode == 130
    monkeypatch.undo()
    rename = Path.rename

    def killed(path, target):
        if path.name.endswith('.part'):
            raise KeyboardInterrupt
        return rename(path, target)
    monkeypatch.setattr(Path, 'rename', killed)
    assert places.run(*flags, '--overwrite', True).returncode == 130
    monkeypatch.undo()
    assert snapshot(places.data) == before
    assert [path.name for path in places.data.parent.iterdir()] == ['Made']
    # killed between the two renamings: the next run finds the old one
    rename(places.data, places.data.with_name('.Made.old'))
    assert_one_line_error(places.run(*flags), '--overwrite True')
    assert snapshot(places.data) == before


def test_broken_pictures_are_left_out(places, folders):
    (folders[0] / 'p5.png').write_bytes(b'no picture')
    (folders[1] / 'q1.tif').write_bytes(b'')
    draw_labels(folders[2], ['p2', 'p9'], (20, 20))
    result = places.run('--source', *folders, '--source_format', 'folders')
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    for part in ('p5.png: cannot be read', 'q1.tif: cannot be read', 'p2_segmentation.png: 20×20 px, but',
                 'p9_segmentation.png: label without a picture'):
        assert part in result.stderr
    told = json.loads((places.data / 'prepare.json').read_text())
    assert len(told['left_out']) == 4 and 'p5' not in names(places.data / 'trainA')


TWO = ['--source', 'ill', 'well', '--source_format', 'folders']


@pytest.mark.parametrize('wrong, parts', (
    (['--source', 'gone', '--source_format', 'isic'], ['--source gone', 'no such folder']),
    (['--source', '.', '--source_format', 'dicom'], ['--source_format']),
    (['--source', '.'], ['--source_format', 'brats, isic, folders']),
    (['--source_format', 'isic'], ['--source', 'downloaded']),
    (['--source', 'empty', '--source_format', 'isic'], ['ISIC_<number>', 'folders']),
    (['--source', 'empty', '--source_format', 'brats'], ['_flair.nii.gz or _t2f.nii.gz']),
    (['--source', 'ill', '--source_format', 'folders'], ['trainA', 'give two']),
    (['--source', 'ill', 'empty', '--source_format', 'folders'], ['empty', 'holds no pictures']),
    (['--source', 'ill', 'well', 'labels', 'empty', '--source_format', 'folders'], ['4 folders']),
    (['--source', 'ill', 'ill', '--source_format', 'folders'], ['--source ill', 'given twice']),
    (['--source', 'ill', 'well', 'empty', '--source_format', 'folders'], ['empty', 'holds no pictures']),
    (['--source', 'ill/p0.png', 'well', '--source_format', 'folders'], ['p0.png', 'give the folder']),
    (['--source', 'tree', 'empty', '--source_format', 'brats'], ['empty', 'holds no volumes']),
    (['--source', 'tree', '--source_format', 'brats', '--z_range', '12-3'], ['--z_range 12-3', '90-120']),
    (['--source', 'tree', '--source_format', 'brats', '--z_range', '90-120'], ['--z_range 90-120', 'largest has 0 px', 'another range']),
    (['--source', 'tree', '--source_format', 'brats', '--modality', 't2'],
     ['_t2.nii.gz', 'there are flair, seg', '--modality']),
    ([*TWO, '--split', '1', '2'], ['--split 1 2']),
    ([*TWO, '--split', 'a', 'b', 'c'], ['--split a b c']),
    ([*TWO, '--split', '2', '.5', '1'], ['--split 2 .5 1']),
    ([*TWO, '--split', '-1', '1', '1'], ['--split -1 1 1']),
    ([*TWO, '--split', '0', '0', '0'], ['--split 0 0 0']),
    ([*TWO, '--split', '90', '0', '1'], ['only 7 for train, 0 for val, 1 for test']),
    ([*TWO, '--dataset', 'phantom'], ['built in']),
    ([*TWO, '--dataset', 'a/b'], ['--data_root']),
    ([*TWO, '--data_root', 'ill'], ['in one another']),
))
def test_bad_input(places, folders, tmp_path, monkeypatch, wrong, parts):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    store_case(tmp_path / 'tree', 'a', kinds=('_flair',))
    result = places.run(*wrong)
    assert_one_line_error(result, *parts)
    assert not places.data.exists() and not any(tmp_path.rglob('.*.part'))
