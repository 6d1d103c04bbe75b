"""--phase prepare: seed, overwriting, interruption and bad input of all formats, and folders of
disease and normal images, perhaps labels, or a whole data set."""
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from dataset import find_cases
from helpers import assert_one_line_error, draw_images, draw_labels, names, read_pixels
from nifti_files import store_case
from preparation import folders as preparation_folders
from preparation import writer
from prepared import description, snapshot, stems
from runtime.lock import locked

ISIC, BRATS, FOLDERS = (f'--source_format {name} --source '
                        for name in ('isic', 'brats', 'folders'))
TWO = FOLDERS + 'ill well '


@pytest.fixture
def flags(folders):
    """Flags that prepare the folders of the fixture of that name."""
    return [*FOLDERS.split(), *folders]


def test_the_seed_decides(program, flags, tree):
    def prepare(*flags):
        program.done(*flags, '--overwrite', True)
        return snapshot(program.data)
    brats = [*BRATS.split(), tree, *'--z_range all --split .4 .3 .3 --lesion_px 100'.split()]
    for line in (flags, brats):
        first = prepare(*line)
        assert prepare(*line) == first
        assert prepare(*line, '--seed', 1).keys() != first.keys()


def test_nothing_is_overwritten_without_the_flag(program, flags):
    data = program.data
    data.mkdir(parents=True)  # an empty folder may be filled
    program.done(*flags)
    before = snapshot(data)
    assert_one_line_error(program.run(*flags, '--seed', 1), 'Made', '--overwrite True')
    assert snapshot(data) == before

    def assert_refused(*parts: str) -> None:
        assert_one_line_error(program.run(*flags, '--overwrite', True), *parts)
    (data / 'prepare.json').unlink()  # a folder that the user made
    assert_refused('not made by --phase prepare')
    (data / 'prepare.json').write_text('{}')
    assert_refused('prepare.json', 'damaged')
    (data / 'prepare.json').write_bytes(before['prepare.json'])
    (data / 'trainA' / 'foreign.png').touch()
    assert_refused('1 file', 'trainA/foreign.png')
    (data / 'trainA' / 'foreign.png').unlink()
    label = next((data / 'test' / 'labels').iterdir())
    label.write_bytes(label.read_bytes() + b'edited by hand')
    assert_refused('changed or went since', label.name)
    label.unlink()
    assert_refused('went since', 'test/labels')
    label.write_bytes(before[label.relative_to(data).as_posix()])
    (data / 'notes').mkdir()
    assert_refused('1 file', 'notes')
    (data / 'notes').rmdir()
    by_hand = before['prepare.json'].replace(b'"seed": 0', b'"seed": 7')
    (data / 'prepare.json').write_bytes(by_hand)
    assert_refused('1 file', 'prepare.json')
    (data / 'prepare.json').write_bytes(before['prepare.json'])
    program.done(*flags, '--overwrite', True)
    assert snapshot(data) == before  # nothing of the earlier one is left


def test_folders_of_the_user_beside_the_data_set_stay(program, flags):
    mine = {f'{name}/x.png': b'mine' for name in ('.Made.old', '.Made.part', '.Made.mine.part')}
    for name, content in mine.items():
        (program.data.parent / name).parent.mkdir(parents=True)
        (program.data.parent / name).write_bytes(content)
    program.data.mkdir()
    (program.data / 'x.png').touch()
    for is_refused in (True, False):
        assert program.run(*flags).returncode == 2 * is_refused
        for name, content in mine.items():
            assert (program.data.parent / name).read_bytes() == content
        (program.data / 'x.png').unlink(missing_ok=True)


def test_labels_edited_while_prepare_runs_stay(program, flags):
    program.done(*flags)
    label = next((program.data / 'test' / 'labels').iterdir())
    finish = writer.DatasetWriter.finish

    def finish_late(self, sources):
        finish(self, sources)
        label.write_bytes(b'edited')
    with mock.patch.object(writer.DatasetWriter, 'finish', finish_late):
        assert_one_line_error(program.run(*flags, '--overwrite', True), label.name)
    assert label.read_bytes() == b'edited' and names(program.data.parent) == ['Made']


def test_of_two_at_once_the_second_is_refused(program, flags):
    with locked(program.data):
        assert_one_line_error(program.run(*flags), program.data, 'in use by process', '--data_root')
    program.done(*flags)


def test_interrupted(program, flags):
    """No half-written data set stays, and the earlier one does."""
    data, again = program.data, [*flags, '--overwrite', True]
    program.done(*flags)
    before = snapshot(data)
    resized = [Image.new('RGB', (64, 64))] * 3 + [KeyboardInterrupt]
    with (mock.patch.object(writer, 'cpu_count', return_value=0),
          mock.patch.object(preparation_folders, 'resize_image', side_effect=resized) as resize):
        assert program.run(*again).returncode == 130
    assert resize.call_count == 4
    rename = Path.rename

    def interrupted_rename(path, target):
        if path.name == 'new':
            raise KeyboardInterrupt
        return rename(path, target)
    with mock.patch.object(Path, 'rename', interrupted_rename):
        assert program.run(*again).returncode == 130
    assert snapshot(data) == before and names(data.parent) == ['Made']
    # killed between the two renamings: the next run brings the earlier one back
    leftover = data.with_name('.Made.0123456789abcdef.part')
    (leftover / 'new').mkdir(parents=True)
    data.rename(leftover / 'old')
    assert_one_line_error(program.run(*flags), '--overwrite True')
    assert snapshot(data) == before and names(data.parent) == ['Made']


@pytest.mark.parametrize('line, parts', (
    (ISIC + 'gone', ['--source gone', 'no such folder']),
    ('--source . --source_format dicom', ['--source_format']),
    ('--source .', ['--source_format', 'brats, isic, folders']),
    ('--source_format isic', ['--source', 'downloaded']),
    (ISIC + 'empty', ['ISIC_<number>', 'folders']),
    (BRATS + 'empty', ['_flair.nii.gz or _t2f.nii.gz']),
    (FOLDERS + 'ill', ['trainA', 'give two']),
    (FOLDERS + 'ill empty', ['empty', 'holds no images']),
    (FOLDERS + 'ill well labels empty', ['4 folders', 'the order is: disease']),
    (FOLDERS + 'well ill labels', ['5 of 5 labels belong to images of ill', 'look swapped']),
    (FOLDERS + 'labels ill well', ['--source labels', 'the order is: disease']),
    (FOLDERS + 'ill labels', ['--source labels', 'the order is: disease']),
    (FOLDERS + 'ill well other', ['not one of 1 labels', 'the order is: disease']),
    (FOLDERS + 'ill tree', ['tree: holds no images', '2 NIfTI volumes: save axial slices']),
    (FOLDERS + 'ill ill', ['--source ill', 'given twice']),
    (FOLDERS + 'ill well empty', ['empty', 'holds no images']),
    (FOLDERS + 'ill/p0.png well', ['p0.png', 'give the folder']),
    (BRATS + 'tree empty', ['empty', 'holds no volumes']),
    (BRATS + 'tree --z_range 12-3', ['--z_range 12-3', '90-120']),
    (BRATS + 'tree --z_range 90-120', ['--z_range 90-120: lies above all volumes', '16 slices',
                                        'another range']),
    (BRATS + 'tree --modality t2', ['_t2.nii.gz', 'there are flair, seg', '--modality']),
    *((f'{TWO} {split}', [split]) for split in ('--split 1 2', '--split a b c', '--split 2 .5 1',
                                                '--split -1 1 1', '--split 0 0 0')),
    (TWO + '--split 90 0 1', ['only 7 for train, 0 for val, 1 for test']),
    (TWO + '--dataset phantom', ['built in']),
    (TWO + '--dataset a/b', ['--data_root']),
    (TWO + '--data_root ill', ['in one another']),
))
def test_bad_input(program, folders, tmp_path, monkeypatch, line, parts):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    store_case(tmp_path / 'tree', 'a')
    draw_labels(tmp_path / 'other', ['x'])
    assert_one_line_error(program.run(*line.split()), *parts)
    assert not program.data.exists() and not any(tmp_path.rglob('.*.part'))


def test_two_folders_with_and_without_labels(program, folders, flags):
    program.done(*flags, '--split', 0.5, 0.25, 0.25)
    data = program.data
    train, val, test = (stems(data / name) for name in ('trainA', 'val/images', 'testA'))
    assert (len(train), len(val), len(test)) == (4, 2, 2)
    assert train | val | test == {f'p{i}' for i in range(6)} | {'more_p0', 'more_p1'}
    assert val | test <= {'p0', 'p1', 'p2', 'p3', 'more_p0'}  # those with labels
    for split, images in (('val', val), ('test', test)):
        assert stems(data / split / 'labels') == {f'{name}_segmentation' for name in images}
    assert len(stems(data / 'trainB')) + len(stems(data / 'testB')) == 8 and stems(data / 'testB')
    written = read_pixels(next(data.rglob('more_p0.png')))  # of 64×64 px already: its pixels stay
    np.testing.assert_array_equal(written, read_pixels(folders[0] / 'more' / 'p0.jpg'))
    # and without labels
    program.done(*flags[:-1], '--overwrite', True)
    assert len(stems(data / 'trainA')) == 7 and len(stems(data / 'testA')) == 1
    assert not (data / 'val').exists()


def test_names_that_macos_wrote(program, tmp_path):
    """There ä is two characters, here one."""
    draw_images(tmp_path / 'ill', ['f\u00e4ll.png', 'other.png'], bright_square=True)
    draw_images(tmp_path / 'well', ['n.png', 'm.png'])
    draw_labels(tmp_path / 'labels', ['fa\u0308ll'])
    program.done(*FOLDERS.split(), *(tmp_path / name for name in ('ill', 'well', 'labels')),
                 '--split', 1, 0, 1)
    assert stems(program.data / 'test' / 'labels') == {'f\u00e4ll_segmentation'}
    assert stems(program.data / 'testA') == {'f\u00e4ll'}


def test_a_prepared_data_set_stays_as_it_is(data_root, program):
    """Prepared at the size of its images, all pixels, names and splits are the same, and so all
    samples that training and test read."""
    tiny = data_root / 'Tiny'
    for path in tiny.rglob('*.png'):
        Image.open(path).resize((64, 64), 0).save(path)
    program.done(*FOLDERS.split(), tiny)
    assert snapshot(program.data).keys() == {'prepare.json', *snapshot(tiny)}
    for name in snapshot(tiny):
        np.testing.assert_array_equal(read_pixels(program.data / name), read_pixels(tiny / name))


def test_masks_thumbnails_and_dicom_beside_images(program, folders, flags):
    """As kaggle_3m has them, PH2, and a NAS."""
    draw_labels(folders[0] / 'more', ['p0'], (64, 64))
    draw_labels(folders[0], ['p1'], (50, 40))
    (folders[0] / 'p1_segmentation.png').rename(folders[0] / 'p1_mask.tif')
    (folders[0] / 'lesion').mkdir()
    (folders[0] / 'more' / 'p0_segmentation.png').rename(folders[0] / 'lesion' / 'IMD3_lesion.png')
    draw_images(folders[1] / '@eaDir' / 'q1.tif', ['SYNO_THUMB.jpg'])
    (folders[1] / 'scan.dcm').touch()
    draw_images(folders[2] / '@eaDir', ['p1.png'])
    assert ('left out: 2 in folders of thumbnails or deleted files, 2 named as masks are, 1 DICOM '
            '(convert to PNG or NIfTI) (listed in prepare.json)') in program.done(*flags)
    assert len(stems(program.data / 'trainA')) + 2 == 8
    for path in folders[1].glob('*.tif'):
        path.unlink()
    assert_one_line_error(program.run(*flags, '--overwrite', True), 'well', 'holds no images',
                          '1 DICOM')


def test_broken_images_are_left_out(program, folders, flags):
    (folders[0] / 'p5.png').write_bytes(b'no image')
    (folders[1] / 'q1.tif').write_bytes(b'')
    draw_labels(folders[2], ['p2', 'p9'], (20, 20))
    result = program.run(*flags)
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    for part in ('p5.png: cannot be read', 'q1.tif: cannot be read',
                 'p2_segmentation.png: 20×20 px, but'):
        assert part in result.stderr
    last = result.stdout.splitlines()[-1]
    assert 'disease images are used' not in last  # 6 of 8: broken normal images do not count
    assert 'left out: 3 broken, 1 labels without an image' in result.stdout
    assert len(description(program.data)['left_out']) == 4
    assert 'p5' not in stems(program.data / 'trainA')


def test_two_labels_of_one_image(program, folders, flags):
    for other in ('p0_SEGMENTATION.png', 'p0.png'):
        draw_labels(folders[2], ['x'], (50, 40))
        (folders[2] / 'x_segmentation.png').rename(folders[2] / other)
        assert_one_line_error(program.run(*flags), folders[2] / other, 'p0_segmentation.png',
                              'the same image')
        (folders[2] / other).unlink()


def test_a_name_too_long_loses_nothing_else(program, folders, flags):
    long_name = 'i' * 247
    for folder in folders[:2]:
        draw_images(folder, [f'{long_name}.png'])
    result = program.run(*flags)
    assert result.returncode == 1
    for folder in folders[:2]:
        assert f'{folder}/{long_name}.png: its name in the data set would be too long' in (
            result.stderr)
    assert len(stems(program.data / 'trainA')) + 2 == 8
    for path in folders[1].glob('q*'):
        path.unlink()
    assert_one_line_error(program.run(*flags, '--overwrite', True), folders[1], 'too long')


def test_test_images_with_labels_are_read_as_val_is(program, data_root):
    """As the authors' samples have them, without training folders."""
    tiny = data_root / 'Tiny'
    (tiny / 'testA').rename(tiny / 'test' / 'images')
    for name in ('trainA', 'trainB'):
        (tiny / name).rename(data_root / name)
    assert [case.label is not None for case in find_cases(tiny, 'test')] == [True, True, False]
    program.done(*FOLDERS.split(), tiny)
    assert stems(program.data / 'testA') == {'t0', 't1', 't2'}
    assert stems(program.data / 'test' / 'labels') == {'t0_segmentation', 't1_segmentation'}
    (data_root / 'trainA').rename(tiny / 'trainA')
    refused = program.run(*FOLDERS.split(), tiny, '--overwrite', True)
    assert_one_line_error(refused, 'trainB would be empty')


def test_what_originals_give_away(program, tmp_path):
    """Another size and shape, which the prepared images show no more, and the same image twice."""
    ill, well = tmp_path / 'ill', tmp_path / 'well'
    draw_images(ill, [f'p{i}.png' for i in range(10)], (64, 64))
    draw_images(well, [f'q{i}.png' for i in range(10)], (64, 48), seed=3)
    out = program.done(*FOLDERS.split(), ill, well)
    for look in ('image size', 'width by height'):
        assert f'{look} alone separates {ill} from {well} (AUC 1.00' in out
    Image.open(ill / 'p3.png').save(well / 'q3.bmp')
    (well / 'q3.png').unlink()
    refused = program.run(*FOLDERS.split(), ill, well, '--overwrite', True)
    assert refused.returncode == 2 and '1 image is in both folders' in refused.stderr
    assert f'{ill}/p3.png and {well}/q3.bmp' in refused.stderr
