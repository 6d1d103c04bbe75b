"""Data sets with files that cannot be used: training says which, test goes on with the rest."""
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dataset
from helpers import (
    STAGE_1,
    TINY_FLAGS,
    assert_one_line_error,
    draw_images,
    draw_labels,
    names,
    read_csv,
    read_json,
)
from image_samples import bmp_header
from utils import UserError

RUN = ['--phase', 'train', *TINY_FLAGS, *STAGE_1, '--batch_size', 1, '--iteration', 1]


def cut(path: Path) -> None:
    draw_images(path.parent, [path.name])
    path.write_bytes(path.read_bytes()[:300])


def link_loop(path: Path) -> None:
    path.symlink_to(path.with_name('other.png'))
    path.with_name('other.png').symlink_to(path)


def same_stem(path: Path) -> None:
    draw_images(path.parent, [path.name, path.with_suffix('.bmp').name])


# files that cannot be used: how each comes about, and what is said of it
BAD = {
    'cut off': (cut, 'truncated'),
    # 400 million pixels, and as many as Pillow warns of
    'bomb': (lambda path: path.write_bytes(bmp_header(20000)), 'pixels'),
    'above the warning': (lambda path: path.write_bytes(bmp_header(10000)), 'pixels'),
    'text': (lambda path: path.write_text('not an image'), 'cannot identify'),
    'zero bytes': (lambda path: path.touch(), 'cannot identify'),
    'same stem': (same_stem, 'has the same name as'),
    'denied': (lambda path: draw_images(path.parent, [path.name]), 'Permission denied'),
}


def test_training_lists_all_that_it_cannot_use_or_goes_on_without(places, monkeypatch):
    opened = Image.open

    def deny(file, *arguments, **keywords):  # whoever runs the tests may read everything
        if 'denied' in str(file):
            raise PermissionError(13, 'Permission denied', str(file))
        return opened(file, *arguments, **keywords)

    monkeypatch.setattr(Image, 'open', deny)
    for kind, (make, _) in BAD.items():
        make(places.data / 'trainA' / f'z bad {kind} ü.png')
    (places.data / 'trainA' / 'dangling.png').symlink_to('nowhere.png')
    link_loop(places.data / 'trainA' / 'loop.png')
    val = places.data / 'val'
    elsewhere = [places.data / 'trainB' / 'y.jpg', val / 'images' / 'v0.png']
    for path in elsewhere:
        path.write_text('text')
    (val / 'labels' / 'stray_segmentation.png').touch()
    draw_images(val / 'images', ['v2.png'])
    draw_areas(val / 'labels' / 'v2_segmentation.png', (0, 128, 255))
    count = len(BAD) + 1 + 4  # of all links one line tells

    refused = places.run(*RUN)
    assert refused.returncode == 2 and 'Traceback' not in refused.stderr
    assert f'{count} files cannot be used' in refused.stderr and '--skip_bad' in refused.stderr
    assert not any(path.is_file() for path in places.results.rglob('*'))
    out = places.done(*RUN, '--skip_bad', 'True')
    assert f'going on without {count} files' in out and 'val JA' in out
    for text in (refused.stderr, out):
        assert 'dangling.png: a link that leads nowhere, like 2 more' in text
        for kind, (_, reason) in BAD.items():
            assert re.search(rf'trainA/z bad {kind} ü\.(png|bmp): .*({reason})', text), kind
        for part in [*elsewhere, 'stray_segmentation.png: label without an image',
                     'v2_segmentation.png: a label has two values']:
            assert str(part) in text
    assert 'going on without' in places.done('--phase', 'val', '--stage', 1)  # as the run did
    assert places.run('--phase', 'val', '--stage', 1, '--skip_bad', 'False').returncode == 2
    for path in (places.data / 'trainB').iterdir():
        path.write_text('text')
    refused = places.run(*RUN, '--skip_bad', 'True')
    assert refused.returncode == 2 and 'trainB: not one image can be used' in refused.stderr


def test_test_goes_on_with_the_rest_lists_them_and_exits_1(stage_1):
    bad = [stage_1.data / name for name in ('testA/t0.png', 'testB/n1.png',
                                            'test/labels/t1_segmentation.png')]
    for path in bad:
        path.write_text('text')
    tested = stage_1.run('--phase', 'test', '--stage', 1)
    assert tested.returncode == 1 and 'left out, since they cannot be used' in tested.stderr
    assert all(f'{path.name}: ' in tested.stderr for path in bad)
    folder = next((stage_1.results / 'test1').iterdir())
    assert names(folder / 'segmentation') == ['t1.png', 't2.png']
    assert names(folder / 'translation_B') == ['n0.png']
    # t0 had a label, but has no image any more; t1 has an image, but no label
    assert '"images": 0' in (folder / 'metrics.json').read_text()
    assert 't0.png' in (folder / 'metrics.json').read_text()


def test_names_with_newlines_and_escape_codes_stay_in_one_line(places):
    name = 'x\n\x1b[31mred\u2028.png'
    (places.data / 'trainA' / name).write_text('text')
    escaped = 'trainA/x\\n\\x1b[31mred\\u2028.png: cannot be read'
    assert_one_line_error(places.run(*RUN), escaped)
    (places.data / 'trainA' / 'y.png').write_text('text')
    result = places.run(*RUN)
    assert len(result.stderr.splitlines()) == 3 and escaped in result.stderr
    assert_one_line_error(places.run('--phase', 'predict', '--input', f'{name}/in', '--output',
                                     'out'), 'red\\u2028.png/in: no such file')


def draw_areas(path: Path, values: tuple[int, ...]) -> np.ndarray:
    """A label 40×36 of areas with these values, from left to right."""
    pixels = np.zeros((36, 40), np.uint8)
    for columns, value in zip(np.array_split(np.arange(40), len(values)), values, strict=True):
        pixels[:, columns] = value
    Image.fromarray(pixels).save(path)
    return pixels


def test_labels_have_two_values_of_any_kind_and_perhaps_blurred_outlines(tmp_path):
    path = tmp_path / 'x.png'
    for values in ((0, 128, 255), (0, 1, 2), (0, 2, 1, 4), (0, 60, 120)):
        draw_areas(path, values)
        with pytest.raises(UserError, match=f'{path}: a label has two values'):
            dataset.read_label(path)
    Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8)).save(path)  # no areas: outlines
    assert dataset.read_label(path).tolist() == [[False, False, True, True]]
    for values in ((0,), (255,), (0, 1), (0, 2), (0, 200), (255, 0), (0, 255)):
        pixels = draw_areas(path, values)
        assert (dataset.read_label(path) == (pixels > 0)).all(), values
    Image.open(path).resize((150, 130), Image.Resampling.BICUBIC).save(path)
    assert dataset.read_label(path).mean() == pytest.approx(0.5, abs=0.02)
    Image.open(path).save(tmp_path / 'x.jpg', quality=60)
    assert dataset.read_label(tmp_path / 'x.jpg').mean() == pytest.approx(0.5, abs=0.02)


def test_masks_and_pipes_beside_training_images_are_left_out(places):
    train = places.data / 'trainA'
    draw_labels(train, ['a0'])
    (train / 'a0_segmentation.png').rename(train / 'a1_mask.png')
    (train / 'scan.dcm').touch()
    os.mkfifo(train / 'pipe.png')  # reading it would wait for ever
    draw_areas(places.data / 'testA' / 't0_lesion.png', (0, 255))
    out = places.done(*RUN, '--iteration', 1)
    assert out.count('left out: 1 named as masks are, as a1_mask.png, 1 DICOM') == 1
    tested = places.done('--phase', 'test', '--stage', 1)
    assert 'left out: 1 named as masks are, as t0_lesion.png' in tested
    for path in list(train.glob('a*.png')):
        draw_areas(path.rename(path.with_name(f'{path.stem}_roi.png')), (0, 255))
    refused = places.run(*RUN)
    assert_one_line_error(refused, 'trainA', '6 named as masks are', 'rename them')


def test_a_turned_photo_is_tested_as_people_see_it(stage_1):
    image = stage_1.data / 'testA' / 't0.png'
    label = stage_1.data / 'test' / 'labels' / 't0_segmentation.png'
    turned = Image.Exif()
    turned[274] = 6
    pixels = Image.open(image)
    pixels.save(image, exif=turned)  # the label has the size that is stored
    stage_1.done('--phase', 'test', '--stage', 1, '--postprocess', 'threshold')
    folder = next((stage_1.results / 'test1').iterdir())
    for kind in ('mask', 'segmentation', 'overlay'):
        assert Image.open(folder / kind / 't0.png').size == pixels.size[::-1]
    Image.open(label).transpose(Image.Transpose.ROTATE_270).save(label)  # that people see
    before = read_json(folder / 'metrics.json')['mean']
    stage_1.done('--phase', 'test', '--stage', 1, '--postprocess', 'threshold')
    assert read_json(folder / 'metrics.json')['mean'] == before


def test_images_of_any_shape(places):
    shutil.rmtree(places.data / 'val')
    shutil.rmtree(places.data / 'test')
    shapes = {'one.png': (1, 1), 'wide.png': (20000, 50),
              'ä' * 100 + 'x' * 45 + '.png': (33, 7)}  # a name of 249 bytes
    for folder in ('trainA', 'trainB', 'testA', 'testB'):
        for name, size in shapes.items():
            Image.new('RGB', size, (10, 200, 90)).save(places.data / folder / name)
    places.done(*RUN, '--iteration', 6)
    for rule in ('threshold', 'otsu', 'watershed', 'crf', 'clean', 'color_edges', 'grabcut'):
        places.done('--phase', 'test', '--stage', 1, '--postprocess', rule, '--save_visuals',
                    rule == 'grabcut')
    folder = next((places.results / 'test1').iterdir())
    for name, size in shapes.items():
        assert Image.open(folder / 'segmentation' / name).size == size


@pytest.mark.filterwarnings('error::RuntimeWarning')
@pytest.mark.parametrize('level', [0, 128, 255])
def test_images_of_one_color_give_numbers(level, places):
    for part in ('trainA', 'trainB', 'testA', 'testB', 'val/images'):
        for path in (places.data / part).iterdir():
            Image.new('RGB', (40, 36), (level,) * 3).save(path)
    out = places.done(*RUN, '--recipe', 'ours', '--localization_weight', 0, '--iteration', 3)
    rows = read_csv(places.results / 'log1' / 'losses.csv')
    assert len(rows) == 3
    assert np.isfinite([list(map(float, row.values())) for row in rows]).all()
    assert 'skipped' not in out and 'nan' not in out
    assert 'nan' not in places.done('--phase', 'test', '--stage', 1)
