"""Reading pictures, folder layouts, unpaired sampling and augmentation."""
import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

import dataset
from conftest import draw, draw_labels
from utils import UserError

RAMP = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def grey_file(path, mode):
    """The same 3×4 ramp in a picture of some mode."""
    image = Image.fromarray(RAMP)
    if mode == 'I;16':
        image = Image.fromarray(RAMP.astype(np.uint16) * 7 + 300)
    elif mode == 'F':
        path = path.with_suffix('.tif')
        image = Image.fromarray(RAMP.astype(np.float32) / 3 - 5)
    elif mode == 'P':
        image = image.convert('RGB').quantize(256)
    else:
        image = image.convert(mode)
    image.save(path)
    return path


@pytest.mark.parametrize('mode', ['L', 'RGB', 'RGBA', 'LA', 'P', 'I;16', 'F'])
@pytest.mark.parametrize('channels', [1, 3])
def test_every_kind_of_picture_reads_alike(mode, channels, tmp_path):
    image = dataset.read_picture(grey_file(tmp_path / 'x.png', mode), channels)
    values = np.asarray(image, float).reshape(3, 4, -1)
    assert image.mode == {1: 'L', 3: 'RGB'}[channels]
    expected = RAMP * (255 / RAMP.max()) if mode in ('I;16', 'F') else RAMP
    assert np.abs(values - expected[..., None]).max() <= 1


def test_transparent_parts_are_black(tmp_path):
    pixels = np.full((2, 2, 4), 200, np.uint8)
    pixels[0, :, 3], pixels[1, :, 3] = 0, 255
    Image.fromarray(pixels).save(tmp_path / 'x.png')
    values = np.asarray(dataset.read_picture(tmp_path / 'x.png'))
    assert (values[0] == 0).all() and (values[1] == 200).all()


def test_constant_16_bit_picture_is_black_not_nan(tmp_path):
    Image.fromarray(np.full((4, 4), 900, np.uint16)).save(tmp_path / 'x.png')
    assert (np.asarray(dataset.read_picture(tmp_path / 'x.png')) == 0).all()


def test_broken_pictures_are_named(tmp_path):
    draw(tmp_path, ['good.png', 'cut.png'])
    (tmp_path / 'cut.png').write_bytes((tmp_path / 'cut.png').read_bytes()[:200])
    (tmp_path / 'text.jpg').write_text('no picture')
    problems = dataset.Problems()
    dataset.check_pictures(dataset.list_pictures(tmp_path), problems)
    with pytest.raises(UserError, match=r'(?s)2 files cannot be used.*cut\.png.*text\.jpg'):
        problems.settle(skip=False)


def test_labels_above_one_half_are_lesion(tmp_path):
    for name, values in (('grey', [0, 127, 128, 255]), ('binary', [0, 0, 1, 1])):
        Image.fromarray(np.array([values], np.uint8)).save(tmp_path / f'{name}.png')
        assert dataset.read_label(tmp_path / f'{name}.png').tolist() == [[0, 0, 1, 1]]


def test_both_layouts(tmp_path):
    for layout, (images, labels) in {'first': ('testA', 'test/labels'),
                                     'second': ('testA/images', 'testA/labels')}.items():
        root = tmp_path / layout
        draw(root / images, ['x1.png', 'x2.jpg'])
        draw_labels(root / labels, ['x2'])
        cases = dataset.find_cases(root, 'test')
        assert [case.name for case in cases] == ['x1', 'x2']
        assert cases[0].label is None and cases[1].label == root / labels / 'x2_segmentation.png'
        problems = dataset.Problems()
        assert dataset.check_cases(cases, problems) == cases and not problems.reasons


def test_label_ending_in_either_case(data_root):
    labels = data_root / 'Tiny' / 'test' / 'labels'
    (labels / 't0_segmentation.png').rename(labels / 't0_Segmentation.png')
    cases = dataset.find_cases(data_root / 'Tiny', 'test')
    assert cases[0].label == labels / 't0_Segmentation.png'


def test_labels_are_optional(data_root):
    for label in (data_root / 'Tiny' / 'val' / 'labels').iterdir():
        label.unlink()
    assert dataset.validation_cases(data_root / 'Tiny') == []


def test_what_a_folder_lists(tmp_path):
    draw(tmp_path, ['b.PNG', 'a.jpg', '.hidden.png'])
    (tmp_path / 'notes.txt').touch()
    (tmp_path / 'folder.png').mkdir()
    assert [path.name for path in dataset.list_pictures(tmp_path)] == ['a.jpg', 'b.PNG']
    draw(tmp_path, ['a.png'])
    with pytest.raises(UserError, match='named a;'):
        dataset.list_pictures(tmp_path)


def test_label_without_picture_or_of_another_size(data_root):
    labels = data_root / 'Tiny' / 'test' / 'labels'
    draw_labels(labels, ['t2'], size=(30, 36))
    problems = dataset.Problems()
    cases = dataset.check_cases(dataset.find_cases(data_root / 'Tiny', 'test'), problems)
    assert [bool(case.label) for case in cases] == [True, True, False]
    assert problems.reasons == {labels / 't2_segmentation.png': '30×36 px, but t2.png is 40×36 px'}
    (labels / 't2_segmentation.png').rename(labels / 't2.png')
    with pytest.raises(UserError, match=r'labels are named <image stem>_segmentation'):
        dataset.find_cases(data_root / 'Tiny', 'test')
    (labels / 't2.png').rename(labels / 'gone_segmentation.png')
    with pytest.raises(UserError, match=r'gone_segmentation\.png: label without a picture'):
        dataset.find_cases(data_root / 'Tiny', 'test')


def samples(settings, start, stop, threads=0, **changed):
    settings = dataclasses.replace(settings, iteration=stop, num_workers=threads, **changed)
    pictures = dataset.training_pictures(settings.data_folder)
    batches = dataset.training_batches(pictures, settings, start,
                                       dataset.TrainingPictures(settings))
    return [(batch['A'], batch['B']) for batch in batches]


def test_each_domain_is_reshuffled_when_used_up(tiny_settings):
    settings = tiny_settings()
    drawn = samples(settings, 0, 15)
    for domain, length in ((0, 5), (1, 3)):
        keys = [hash(sample[domain].numpy().tobytes()) for sample in drawn]
        rounds = [keys[start:start + length] for start in range(0, 15, length)]
        assert all(len(set(once)) == length for once in rounds)
        assert len({tuple(once) for once in rounds}) > 1
        assert set(Counter(keys).values()) == {15 // length}


@pytest.mark.parametrize('augment', [False, True])
def test_small_sets_are_decoded_once_and_large_ones_alike(augment, tiny_settings, monkeypatch):
    opened = Counter()
    read = dataset.read_picture

    def counting(path, channels=3):
        opened[path] += 1
        return read(path, channels)

    monkeypatch.setattr(dataset, 'read_picture', counting)
    settings = tiny_settings(augment=augment)
    kept = samples(settings, 0, 15)
    assert len(opened) == 8 and set(opened.values()) == {1}
    size = 82 if augment else 32
    room = 3 * size * size * 4 / 1e6  # three colour pictures, as Pillow holds them
    for cache_mb, most in ((0, 0), (room, 3)):
        opened.clear()
        again = samples(settings, 0, 15, cache_mb=cache_mb)
        assert all(torch.equal(one, other) for pair in zip(kept, again) for one, other in zip(*pair))
        assert sum(count == 1 for count in opened.values()) == most


@pytest.mark.parametrize('augment', [False, True])
def test_samples_depend_on_seed_and_position_alone(augment, tiny_settings):
    def same(one, other):
        return all(torch.equal(a, b) for pair in zip(one, other) for a, b in zip(*pair))

    settings = tiny_settings(augment=augment)
    drawn = samples(settings, 0, 6)
    assert same(drawn, samples(settings, 0, 6, threads=3))
    assert same(drawn[4:], samples(settings, 4, 6))
    assert not same(drawn, samples(tiny_settings(augment=augment, seed=1), 0, 6))


def test_samples_are_in_range_and_resized(tiny_settings):
    for generation in ('first', 'second'):
        for sample in samples(tiny_settings(generation=generation), 0, 3):
            for image in sample:
                assert image.shape == (1, 3, 32, 32)
                assert -1 <= image.min() < -0.5 and image.max() <= 1


def test_augmentation_flips_crops_and_changes_contrast():
    image = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))).convert('RGB')
    rng = np.random.default_rng(0)
    made = [np.asarray(dataset.augment(image, (32, 32), rng), float)[..., 0] for _ in range(60)]
    assert all(values.shape == (32, 32) for values in made)
    falling = sum(values[0, 0] > values[0, -1] for values in made)
    assert 15 < falling < 45  # half are flipped
    spans = [np.ptp(values) for values in made]  # a crop of 32 out of 82 px
    assert max(spans) < 0.55 * 255 and max(spans) / min(spans) > 1.1
