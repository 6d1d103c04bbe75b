"""--source_format brats: slices of volumes, shared out by patient."""
import itertools
import re

import nibabel
import numpy as np
import pytest
from PIL import Image

from helpers import assert_one_line_error, read_pixels
from nifti_files import CASE_SHAPE, DISEASE_SLICES, NORMAL_SLICES, store, store_case
from preparation import heights, nifti
from preparation.writer import resize_image
from prepared import description, snapshot, stems

BRATS = ['--source_format', 'brats', '--z_range', 'all', '--lesion_px', 100, '--source']
FOLDERS = {'trainA': 'train', 'trainB': 'train', 'testA': 'test', 'testB': 'test',
           'val/images': 'val'}


def test_slices_by_patient(program, tree):
    out = program.done(*BRATS, tree, '--split', 0.5, 0.25, 0.25)
    data, content = program.data, description(program.data)
    patients = {split: set(content['patients'][split]) for split in ('train', 'val', 'test')}
    assert len(set.union(*patients.values())) == sum(map(len, patients.values())) >= 4  # none twice
    assert all(patients.values())
    for folder, split in FOLDERS.items():
        for stem in stems(data / folder):
            case, z = re.fullmatch(r'(.+)_flair_(\d{3})', stem).groups()
            assert case in patients[split]
            is_normal = folder.endswith('B')
            assert int(z) in (NORMAL_SLICES if is_normal else DISEASE_SLICES) \
                or is_normal and case == 'BraTS20_E'  # has no lesion
    assert len([*data.glob('*A/*'), *data.glob('val/images/*')]) == 4 * 3
    assert len(stems(data / 'trainB')) <= len(stems(data / 'trainA'))
    assert not (data / 'train').exists()  # no labels to train on
    for labels, images in (('test/labels', 'testA'), ('val/labels', 'val/images')):
        labeled = {stem.removesuffix('_segmentation') for stem in stems(data / labels)}
        assert labeled == stems(data / images)
    # what was left out is listed; the summary counts what was written
    (file, reason), = content['left_out'].items()
    assert 'BraTS20_F_flair.nii.gz' in file and reason == 'without a segmentation'
    unused = re.search(r'not used: 4 with .*_px 100, 0 other diseased and (\d+) normal ones', out)
    assert int(unused[1]) > 0
    assert '1 without a segmentation' in out and 'next: python main.py' in out
    for name, count in content['counts'].items():
        assert len(stems(data / name)) == count and f'{count} {name}' in out
    program.done(*BRATS, tree, '--split', 0.5, 0.25, 0.25, '--z_range', '6-12', '--overwrite', True)
    numbers = {folder: {int(stem[-3:]) for stem in stems(data / folder)} for folder in FOLDERS}
    assert set.union(*numbers.values()) <= set(range(6, 13)) and numbers['trainA'] == {6, 7}


def test_images_and_labels_lie_on_each_other_however_stored(program, tree):
    """Every case has the same head and lesion, so all their prepared images are equal."""
    program.done(*BRATS, tree, '--split', 0.01, 0, 0.99)
    images = {path.stem: read_pixels(path) for path in (program.data / 'testA').glob('*_006.png')}
    first, *others = images.values()
    assert len(others) >= 2 and first.shape == (64, 64) and first.dtype == np.uint8
    assert all(np.array_equal(first, other) for other in others)
    head_rows, head_columns = np.nonzero(first)
    side = 22 * 2 * (1 + 2 * nifti.MARGIN)  # mm of the image: 22 voxels of 2 mm to the front
    lesion_px = (8 * 1 / side * 64) * (8 * 2 / side * 64)
    for stem in images:
        label = read_pixels(program.data / 'test' / 'labels' / f'{stem}_segmentation.png')
        assert set(np.unique(label)) == {0, 255}
        # where the lesion was drawn: to the patient's left, and to the front of the middle
        rows, columns = np.nonzero(label)
        assert rows.min() > head_rows.min() and columns.max() < head_columns.max()
        assert len(rows) == pytest.approx(lesion_px, rel=0.15)
    assert description(program.data)['settings'] == {
        'seed': 0, 'img_size': [64, 64], 'split': [0.01, 0, 0.99], 'modality': 'flair',
        'z_range': 'all', 'lesion_px': 100}


def test_exact_counts(program, tree):
    program.done(*BRATS, tree, '--split', 5, 3, 2)
    counts = description(program.data)['counts']
    assert (counts['trainA'], counts['val/images'], counts['testA']) == (5, 3, 2)
    assert counts['val/labels'] == 3 and counts['test/labels'] == 2
    # evenly of all scans: the two patients of train differ by one slice at most
    cases = [stem.rsplit('_', 1)[0] for stem in stems(program.data / 'trainA')]
    assert sorted(map(cases.count, set(cases))) == [2, 3]
    result = program.run(*BRATS, tree, '--split', 50, 3, 2, '--overwrite', True)
    assert_one_line_error(result, '--split 50 3 2', 'ask for fewer', 'fractions')
    assert description(program.data)['counts'] == counts  # the data set stayed


@pytest.mark.parametrize('seg, others, ending', (
    ('_seg', ('_flair', '_t1', '_t1ce'), '_t2'), ('-seg', ('-t2f', '-t1n', '-t1c'), '-t2w')),
    ids=('2021', '2023'))
def test_modality(program, tmp_path, seg, others, ending):
    root, kinds = tmp_path / 'downloaded', (*others, ending)
    for number in range(3):
        store_case(root / str(number), f'BraTS-GLI-0000{number}-000', kinds=kinds, seg=seg)
    program.done(*BRATS, root, '--modality', 't2', '--split', 3, 3, 3)
    assert all(f'{ending}_0' in stem for stem in stems(program.data / 'trainA'))
    written = read_pixels(next((program.data / 'trainA').glob('*_006.png')))
    volume = nifti.read(next(root.rglob(f'*{ending}.nii.gz')))
    expected = resize_image(Image.fromarray(volume.image(6)), (64, 64))
    np.testing.assert_array_equal(written, np.asarray(expected))


def test_time_points_of_a_patient_stay_together(program, tmp_path):
    for patient, time_point in itertools.product(range(4), range(2)):
        case = f'BraTS-GLI-0000{patient}-00{time_point}'
        store_case(tmp_path / 'downloaded' / case, case, kinds=('-t2f',), seg='-seg')
    program.done(*BRATS, tmp_path / 'downloaded', '--split', 0.5, 0.25, 0.25)
    patients = [{stem[:len('BraTS-GLI-00000')] for stem in stems(program.data / folder)}
                for folder in ('trainA', 'testA', 'val/images')]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 4


def test_labels_on_the_same_grid_and_folders_named_as_volumes(program, tmp_path, tree):
    """Labels stored in other orientations, with a fourth dimension of 1, or in folders `X.nii/`
    make the same data set as those beside their volumes."""
    program.done(*BRATS, tree, '--split', 0.5, 0, 0.5)
    expected = snapshot(program.data / 'testA')
    for number, path in enumerate(sorted(tree.rglob('*_seg.nii*'))):
        label = nibabel.load(path)
        turned = label.as_reoriented(np.array([[2, 1], [0, -1], [1, -1]]))
        path.unlink()
        if number % 2:
            nibabel.save(turned, path)
        else:
            values = np.asarray(turned.dataobj)[..., None]
            nibabel.save(nibabel.Nifti1Image(values, turned.affine), path)
    for path in sorted(tree.rglob('*_flair.nii')) + sorted(tree.rglob('*_seg.nii')):
        path.rename(path.with_suffix('.part'))
        path.mkdir()
        inner = path / ('brain_flair.nii' if 'flair' in path.name else 'file.nii')
        path.with_suffix('.part').rename(inner)
    program.done(*BRATS, tree, '--split', 0.5, 0, 0.5, '--overwrite', True)
    assert snapshot(program.data / 'testA') == expected and len(expected) > 2


def test_broken_volumes_are_left_out(program, tree):
    (tree / 'HGG' / 'Brats18_A_1' / 'Brats18_A_1_flair.nii.gz').write_bytes(b'no volume')
    shorter = nibabel.Nifti1Image(np.zeros((24, 28, 9), np.float32), np.eye(4))
    nibabel.save(shorter, tree / 'HGG' / 'Brats18_B_1' / 'Brats18_B_1_seg.nii')
    label = nibabel.load(tree / 'LGG' / 'D' / 'W39_Segm.nii.gz')
    shifted = nibabel.Nifti1Image(np.asarray(label.dataobj), label.affine + np.eye(4) * 0.5)
    nibabel.save(shifted, tree / 'LGG' / 'D' / 'W39_Segm.nii.gz')
    for case in 'GHI':
        store_case(tree / 'HGG' / case, f'BraTS20_{case}')
    store(tree / 'HGG' / 'H' / 'BraTS20_H_flair.nii.gz', np.ones(CASE_SHAPE), spacing=(1, 1e30, 1))
    infinite = np.zeros(CASE_SHAPE, np.float32)
    infinite[0, 0, 0] = np.inf
    store(tree / 'HGG' / 'I' / 'BraTS20_I_seg.nii.gz', infinite)
    result = program.run(*BRATS, tree, '--split', 0.5, 0, 0.5)
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    for part in ('Brats18_A_1_flair.nii.gz: cannot be read',
                 'Brats18_B_1_seg.nii: 24×28×9 voxels, but', 'W39_Segm.nii.gz: lies elsewhere'):
        assert part in result.stderr
    for part in ('BraTS20_H_flair.nii.gz: cannot be read as a NIfTI volume (a spacing of 1×1e+30×1',
                 'BraTS20_I_seg.nii.gz: 1 infinite values'):
        assert part in result.stderr
    assert len(description(program.data)['left_out']) == 6
    written = stems(program.data / 'trainA') | stems(program.data / 'testA')
    assert {stem.split('_flair')[0] for stem in written} == {'BraTS20_C', 'BraTS20_G'}


def test_linked_patients_are_read_and_broken_links_named(program, tree, tmp_path):
    """As people make subsets on clusters, and as clones of git-annex without their content are."""
    subset = tmp_path / 'subset'
    subset.mkdir()
    for number, path in enumerate(sorted(tree.glob('?GG/*'))):
        (subset / str(number)).symlink_to(path)
    seg = next((tree / 'HGG' / 'C').glob('*_seg*'))
    seg.unlink()
    seg.symlink_to('nowhere')
    result = program.run(*BRATS, subset, '--split', 0.5, 0, 0.5)
    assert result.returncode == 1 and f'{seg.name}: a link that leads nowhere' in result.stderr
    written = stems(program.data / 'trainA') | stems(program.data / 'testA')
    assert {stem.split('_flair')[0] for stem in written} == {
        'Brats18_A_1', 'Brats18_B_1', 'BraTS20_D'}
    for path in tree.rglob('*flair*'):
        path.unlink()
        path.symlink_to('nowhere')
    assert_one_line_error(program.run(*BRATS, subset, '--overwrite', True), 'a link that leads')


def test_volumes_of_any_depth_and_normal_slices_of_the_same_heights(program, tmp_path):
    """Lesions in the upper half: normal slices come from there, out of the volumes without any."""
    flags = [*BRATS[:2], *BRATS[4:6], *BRATS[-1:]]  # without --z_range
    for number in range(6):
        slices = {} if number % 2 else {9: 8, 10: 8, 11: 8}
        store_case(tmp_path / 'downloaded' / f'case{number}', f'case{number}', slices)
    out = program.done(*flags, tmp_path / 'downloaded', '--split', 6, 0, 3)
    assert 'volumes of 16 slices, with lesions in slices 9-11' in out
    for folder in ('trainB', 'testB'):
        assert {int(stem[-3:]) for stem in stems(program.data / folder)} == {9, 10, 11}
    found = description(program.data)['heights']
    assert found == {'overlap': 1, 'auc': 0.5} and 'overlap by 100 %' in out and 'AUC 0.50' in out
    out = program.done(*flags, tmp_path / 'downloaded', '--overwrite', True)  # without --split
    assert 'too few disease images for the published split of 563 90 90: split by fractions' in out
    assert description(program.data)['settings']['split'] == [0.7, 0.15, 0.15]
    refused = program.run(*flags, tmp_path / 'downloaded', '--z_range', '90-120', '--overwrite',
                          True)
    assert_one_line_error(refused, 'volumes of 16 slices', 'lesions in slices 9-11')
    for path in (tmp_path / 'downloaded').rglob('*_seg*'):
        path.unlink()
    refused = program.run(*flags, tmp_path / 'downloaded', '--overwrite', True)
    assert_one_line_error(refused, '6 without a segmentation', 'save axial slices as images')
    assert 'files/s' not in refused.stderr  # no progress of nothing


def test_heights_are_matched_as_far_as_can_be():
    rng = np.random.default_rng(0)
    disease, offered = rng.normal(0.6, 0.05, 100), rng.uniform(0, 1, 3000)
    normal = offered[heights.match(disease, offered, rng)]
    assert len(normal) == 100
    assert heights.overlap(disease, normal) > 0.7 and heights.separation(disease, normal) < 0.6
    assert heights.overlap(disease, offered) < 0.4 and heights.separation(disease, offered) > 0.85
    assert len(heights.match([0.5] * 10, [0.2] * 8, rng)) == 8  # rather than none
