"""Data sets with files that cannot be used: training says which, test goes on with the rest."""
import csv
import os
import re
import shutil
import struct
import zlib
from unittest import mock

import numpy as np
import pytest
from PIL import Image

import dataset
from conftest import STAGE_1, TINY_FLAGS, Places, draw
from utils import UserError

RUN = ['--phase', 'train', *TINY_FLAGS, *STAGE_1, '--batch_size', 1, '--iteration', 1]


@pytest.fixture
def places(data_root, tmp_path):
    return Places(data_root, tmp_path)


def huge_png(path, width=20000, height=20000):
    """A PNG that says it has 400 million pixels, in 100 bytes."""
    def chunk(kind, data):
        return (struct.pack('>I', len(data)) + kind + data
                + struct.pack('>I', zlib.crc32(kind + data)))

    path.write_bytes(b'\x89PNG\r\n\x1a\n'
                     + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
                     + chunk(b'IDAT', zlib.compress(b'\0' * 1000)) + chunk(b'IEND', b''))


def cut(path):
    draw(path.parent, [path.name])
    path.write_bytes(path.read_bytes()[:300])


def loop(path):
    path.symlink_to(path.with_name('other' + path.suffix))
    path.with_name('other' + path.suffix).symlink_to(path)


def same_stem(path):
    draw(path.parent, [path.with_suffix('.png').name])
    draw(path.parent, [path.with_suffix('.bmp').name])
    if path.suffix == '.png':
        path.with_suffix('.bmp').rename(path.with_suffix('.webp'))


# files that cannot be used: how each comes about, and what is said of it
BAD = {
    'cut off': (cut, 'truncated'),
    'bomb': (huge_png, 'pixels'),
    'above the warning': (lambda path: huge_png(path, 10000, 10000), 'pixels'),
    'text': (lambda path: path.write_text('not a picture'), 'cannot identify'),
    'zero bytes': (lambda path: path.touch(), 'cannot identify'),
    'dangling link': (lambda path: path.symlink_to('nowhere.png'), 'No such file'),
    'symlink loop': (loop, 'symbolic links|Symlink loop'),  # as Pillow's versions say it
    'same stem': (same_stem, 'named as'),
}


@pytest.mark.parametrize('kind', BAD)
def test_training_lists_what_it_cannot_use_or_goes_on_without(places, kind):
    make, reason = BAD[kind]
    folder = places.data / 'trainA'
    make(folder / 'z bad ü.png')
    refused = places.run(*RUN)
    assert refused.returncode == 2 and 'Traceback' not in refused.stderr
    assert re.search(reason, refused.stderr) and '--skip_bad' in refused.stderr
    assert str(folder) in refused.stderr
    assert not any(path.is_file() for path in places.results.rglob('*'))
    went_on = places.run(*RUN, '--skip_bad', 'True')
    assert went_on.returncode == 0, went_on.stderr
    assert 'going on without' in went_on.stdout and re.search(reason, went_on.stdout)


def test_all_offenders_of_all_folders_are_listed(places):
    bad = [places.data / 'trainA' / 'x.png', places.data / 'trainB' / 'y.jpg',
           places.data / 'val' / 'images' / 'v0.png']
    for path in bad:
        path.write_text('text')
    (places.data / 'val' / 'labels' / 'stray_segmentation.png').touch()
    refused = places.run(*RUN)
    assert refused.returncode == 2 and '4 files cannot be used' in refused.stderr
    for path in [*bad, 'stray_segmentation.png: label without a picture']:
        assert str(path) in refused.stderr
    out = places.done(*RUN, '--skip_bad', 'True')
    assert 'going on without 4 files' in out and 'val JA' in out
    assert 'going on without' in places.done('--phase', 'val', '--stage', 1)  # as the run did
    assert places.run('--phase', 'val', '--stage', 1, '--skip_bad', 'False').returncode == 2


def test_a_folder_without_one_usable_picture(places):
    for path in (places.data / 'trainB').iterdir():
        path.write_text('text')
    refused = places.run(*RUN, '--skip_bad', 'True')
    assert refused.returncode == 2 and 'trainB: not one picture can be used' in refused.stderr


def test_what_is_no_picture_by_name_is_passed_over(places):
    for name in ('.hidden.png', 'notes.txt', 'Thumbs.db', 'a9.png~'):
        (places.data / 'trainA' / name).write_text('not a picture')
    (places.data / 'trainA' / 'folder.png').mkdir()
    assert 'cannot be used' not in places.done(*RUN)


def test_a_wrong_ending_does_not_matter(places):
    draw(places.data / 'trainA', ['x.png'])
    (places.data / 'trainA' / 'x.png').rename(places.data / 'trainA' / 'x.jpg')
    places.done(*RUN)


def test_a_picture_that_may_not_be_read(places):
    path = places.data / 'trainA' / 'a1.png'
    opened = Image.open

    def deny(file, *arguments, **keywords):  # the one who runs the tests may read everything
        if str(file) == str(path):
            raise PermissionError(13, 'Permission denied', str(file))
        return opened(file, *arguments, **keywords)

    with mock.patch.object(Image, 'open', deny):
        refused = places.run(*RUN)
    assert refused.returncode == 2
    assert f'{path}: ' in refused.stderr and 'Permission denied' in refused.stderr


def test_test_goes_on_with_the_rest_lists_them_and_exits_1(places):
    places.done(*RUN)
    labels = places.data / 'test' / 'labels'
    for path in (places.data / 'testA' / 't0.png', places.data / 'testB' / 'n1.png',
                 labels / 't1_segmentation.png'):
        path.write_text('text')
    tested = places.run('--phase', 'test', '--stage', 1)
    assert tested.returncode == 1
    assert 'left out, since they cannot be used' in tested.stderr
    for name in ('t0.png: ', 'n1.png: ', 't1_segmentation.png: '):
        assert name in tested.stderr
    folder = next((places.results / 'test1').iterdir())
    assert sorted(path.stem for path in (folder / 'segmentation').iterdir()) == ['t1', 't2']
    assert [path.stem for path in (folder / 'translated_B').iterdir()] == ['n0']
    # t0 had a label, but no picture any more; t1 a picture, but no label
    assert '"images": 0' in (folder / 'metrics.json').read_text()
    assert 't0.png' in (folder / 'metrics.json').read_text()


def label(path, values):
    """A label 40×36 of areas with these values, from left to right."""
    columns = np.array_split(np.arange(40), len(values))
    picture = np.zeros((36, 40), np.uint8)
    for part, value in zip(columns, values):
        picture[:, part] = value
    Image.fromarray(picture).save(path)
    return picture


@pytest.mark.parametrize('values', [(0, 128, 255), (0, 1, 2), (0, 2, 1, 4), (0, 60, 120)])
def test_a_label_of_three_values_is_refused(places, values):
    path = places.data / 'val' / 'labels' / 'v0_segmentation.png'
    label(path, values)
    refused = places.run(*RUN)
    assert refused.returncode == 2
    assert f'{path}: a label has two values' in refused.stderr
    assert 'val JA' in places.done(*RUN, '--skip_bad', 'True')  # by the other label


def test_labels_of_two_values_and_with_blurred_outlines_are_read(tmp_path):
    path = tmp_path / 'x.png'
    for values in ((0, 255), (0, 1), (0, 2), (0, 200), (255, 0)):
        picture = label(path, values)
        assert (dataset.read_label(path) == (picture > 0)).all(), values
    label(path, (0, 255))
    Image.open(path).resize((150, 130), Image.Resampling.BICUBIC).save(path)
    assert dataset.read_label(path).mean() == pytest.approx(0.5, abs=0.02)
    Image.open(path).save(tmp_path / 'x.jpg', quality=60)
    assert dataset.read_label(tmp_path / 'x.jpg').mean() == pytest.approx(0.5, abs=0.02)
    for level in (0, 255):
        Image.new('L', (9, 9), level).save(path)
        assert dataset.read_label(path).mean() == (level > 0)


def test_pictures_of_any_form(places):
    shutil.rmtree(places.data / 'val')
    shutil.rmtree(places.data / 'test')
    long_name = 'ä' * 100 + 'x' * 45 + '.png'  # 249 bytes
    for domain in 'AB':
        for name, size in (('one.png', (1, 1)), ('wide.png', (20000, 50)), (long_name, (33, 7))):
            Image.new('RGB', size, (10, 200, 90)).save(places.data / f'train{domain}' / name)
            Image.new('RGB', size, (10, 200, 90)).save(places.data / f'test{domain}' / name)
    places.done(*RUN, '--iteration', 6)
    for rule in ('threshold', 'otsu', 'watershed', 'crf', 'clean', 'fit'):
        places.done('--phase', 'test', '--stage', 1, '--postprocess', rule, '--pictures',
                    rule == 'fit')
    folder = next((places.results / 'test1').iterdir())
    for name, size in (('one.png', (1, 1)), ('wide.png', (20000, 50)), (long_name, (33, 7))):
        assert Image.open(folder / 'segmentation' / name).size == size


@pytest.mark.parametrize('level', [0, 128, 255])
def test_pictures_of_one_colour_give_numbers(places, level):
    for part in ('trainA', 'trainB', 'testA', 'testB', 'val/images'):
        for path in (places.data / part).iterdir():
            Image.new('RGB', (40, 36), (level,) * 3).save(path)
    out = places.done('--phase', 'train', *TINY_FLAGS, '--stage', 1, '--location_weight', 0,
                      '--batch_size', 1, '--iteration', 3)
    with open(places.results / 'log1' / 'losses.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 and all(np.isfinite(float(value)) for row in rows for value in row.values())
    assert 'skipped' not in out and 'nan' not in out
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONWARNINGS', 'error')
        tested = places.done('--phase', 'test', '--stage', 1)
    assert 'nan' not in tested


def test_more_than_a_name_can_hold_is_told_apart(tmp_path):
    # nothing above invents names longer than the pictures'
    draw(tmp_path, ['x' * 251 + '.png'])
    assert len(os.listdir(tmp_path)) == 1
    with pytest.raises(UserError, match='no such folder'):
        dataset.list_pictures(tmp_path / 'gone')
