"""Reading images, folder layouts, and unpaired batches."""
import dataclasses
from collections import Counter
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import dataset
from helpers import draw_images, draw_labels, same
from stages.augmentation import crop_source_size, published_augmentation
from utils import UserError

RAMP = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
RAMP_IMAGES = {  # by mode
    **{mode: Image.fromarray(RAMP).convert(mode) for mode in ('L', 'RGB', 'RGBA', 'LA')},
    'P': Image.fromarray(RAMP).convert('RGB').quantize(256),
    'I;16': Image.fromarray(RAMP.astype(np.uint16) * 7 + 300),
    'F': Image.fromarray(RAMP.astype(np.float32) / 3 - 5)}
augmented_or_not = pytest.mark.parametrize('augments', [False, True])


@pytest.mark.parametrize('mode', RAMP_IMAGES)
@pytest.mark.parametrize('channels', [1, 3])
def test_every_kind_of_image_reads_alike_whatever_its_ending(mode, channels, tmp_path):
    RAMP_IMAGES[mode].save(tmp_path / 'x.jpg', 'tiff' if mode == 'F' else 'png')
    image = dataset.read_image(tmp_path / 'x.jpg', channels)
    values = np.asarray(image, float).reshape(3, 4, -1)
    assert image.mode == {1: 'L', 3: 'RGB'}[channels]
    expected = RAMP * (255 / RAMP.max()) if mode in ('I;16', 'F') else RAMP
    assert np.abs(values - expected[..., None]).max() <= 1


def test_transparent_parts_and_constant_16_bit_images_are_black(tmp_path):
    pixels = np.full((2, 2, 4), 200, np.uint8)
    pixels[0, :, 3], pixels[1, :, 3] = 0, 255
    Image.fromarray(pixels).save(tmp_path / 'x.png')
    values = np.asarray(dataset.read_image(tmp_path / 'x.png'))
    assert (values[0] == 0).all() and (values[1] == 200).all()
    Image.fromarray(np.full((4, 4), 900, np.uint16)).save(tmp_path / 'x.png')
    assert (np.asarray(dataset.read_image(tmp_path / 'x.png')) == 0).all()  # and no NaN


@pytest.mark.parametrize('images, labels', [('testA', 'test/labels'),
                                            ('testA/images', 'testA/labels')])
def test_both_layouts_and_endings_of_labels_in_either_case(images, labels, tmp_path):
    draw_images(tmp_path / images, ['x1.png', 'x2.jpg', 'x3.png'])
    draw_labels(tmp_path / labels, ['x2', 'x3'])
    label, capital = (tmp_path / labels / f'{name}.png'
                      for name in ('x2_segmentation', 'x3_Segmentation'))
    (tmp_path / labels / 'x3_segmentation.png').rename(capital)
    cases = dataset.find_cases(tmp_path, 'test')
    assert [case.label for case in cases] == [None, label, capital]
    assert [case.name for case in cases] == ['x1', 'x2', 'x3']
    problems = dataset.Problems()
    assert dataset.check_cases(cases, problems) == cases and not problems.reasons


def test_what_a_folder_lists(tmp_path):
    draw_images(tmp_path, ['b.PNG', 'a.jpg', '.hidden.png'])
    for name in ('notes.txt', 'Thumbs.db', 'a9.png~'):
        (tmp_path / name).touch()
    (tmp_path / 'folder.png').mkdir()
    assert [path.name for path in dataset.list_images(tmp_path)] == ['a.jpg', 'b.PNG']
    draw_images(tmp_path, ['a.png'])
    with pytest.raises(UserError, match='named a;'):
        dataset.list_images(tmp_path)
    draw_images(tmp_path / 'folder.png', ['c.webp'])  # with those of its subfolders:
    assert [str(path.relative_to(tmp_path))
            for path in dataset.find_images(tmp_path, dataset.Problems())[0]] == [
        'a.jpg', 'a.png', 'b.PNG', 'folder.png/c.webp']


def test_links_are_followed_and_every_folder_is_read_once(tmp_path):
    root, store = tmp_path / 'root', tmp_path / 'store'
    draw_images(root / 'b', ['b.png'])
    draw_images(store / 'deep', ['s.png'])
    for name, target in (('a', root / 'b'), ('c', store), ('d', store / 'deep'), ('up', tmp_path),
                         ('b/loop', root), ('e.png', store / 'deep' / 's.png'), ('x.png', 'x.png'),
                         ('gone.png', 'nowhere'), ('lost.png', 'nowhere'), ('lost', 'nowhere')):
        (root / name).symlink_to(target)
    problems = dataset.Problems()
    found, left_out = dataset.find_images(root, problems)
    assert [path.relative_to(root).as_posix() for path in found] == [
        'b/b.png', 'c/deep/s.png', 'e.png'] and not left_out
    assert problems.listing == (f'  {root}/gone.png: a link that leads nowhere, like 3 more; fetch '
                                'what it names')


def test_links_to_missing_folders_and_subfolders_are_named(tmp_path, capsys):
    draw_images(tmp_path / 'images', ['a.png'])
    for name in ('patient1', '@eaDir', 'labels', '.hidden', 'scans.png'):
        (tmp_path / 'images' / name).mkdir()
    problems = dataset.Problems()
    assert len(dataset.list_images(tmp_path, problems)) == 1 and problems.report() == 0
    assert capsys.readouterr().out == (
        f'{tmp_path}/images: 2 subfolders are not looked into; move the images up, or use --phase '
        'prepare\n')
    (tmp_path / 'images' / 'patient2').symlink_to('unmounted')
    assert len(dataset.list_images(tmp_path, problems)) == 1 and problems.report() == 1
    assert 'images/patient2: a link that leads nowhere; fetch' in capsys.readouterr().err
    with pytest.raises(UserError, match='images/patient2: a link that leads nowhere'):
        dataset.list_images(tmp_path)
    (tmp_path / 'images' / 'a.png').unlink()
    with pytest.raises(UserError, match='holds no images .*but 2 subfolders are.*leads nowhere'):
        dataset.list_images(tmp_path, problems)


def test_label_without_image_or_of_another_size(data_root):
    labels = data_root / 'Tiny' / 'test' / 'labels'
    draw_labels(labels, ['t2'], size=(30, 36))
    problems = dataset.Problems()
    cases = dataset.check_cases(dataset.find_cases(data_root / 'Tiny', 'test'), problems)
    assert [bool(case.label) for case in cases] == [True, True, False]
    assert problems.reasons == {labels / 't2_segmentation.png': '30×36 px, but t2.png is 40×36 px'}
    draw_labels(labels, ['t1_'])
    (labels / 't1__segmentation.png').rename(labels / 't1_SEGMENTATION.png')
    with pytest.raises(UserError, match=r't1_segmentation\.png: a label of the same image as t1_S'):
        dataset.find_cases(data_root / 'Tiny', 'test')
    (labels / 't1_SEGMENTATION.png').unlink()
    (labels / 't2_segmentation.png').rename(labels / 't2.png')
    with pytest.raises(UserError, match=r'labels are named <image stem>_segmentation'):
        dataset.find_cases(data_root / 'Tiny', 'test')
    (labels / 't2.png').rename(labels / 'gone_segmentation.png')
    with pytest.raises(UserError, match=r'gone_segmentation\.png: label without an image'):
        dataset.find_cases(data_root / 'Tiny', 'test')


def batches(config, start, stop, augments=False, soft_masks=None, **changed):
    """The batches of iterations start+1 … stop, with the published augmentation or without."""
    config = dataclasses.replace(config, iteration=stop, **changed)
    images = dataset.training_images(config.data_folder)
    store = dataset.ImageStore(config, crop_source_size(config.size) if augments else config.size)

    def augment(image, rng, is_mask):
        return published_augmentation(image, config.size, rng, is_mask)

    return list(dataset.training_batches(images, config, start, store, soft_masks,
                                         augment if augments else None))


def test_each_domain_is_reshuffled_when_used_up(tiny_config):
    drawn = batches(tiny_config(), 0, 15)
    for domain, length in (('A', 5), ('B', 3)):
        keys = [hash(batch[domain].numpy().tobytes()) for batch in drawn]
        rounds = [tuple(keys[start:start + length]) for start in range(0, 15, length)]
        assert all(len(set(one)) == length for one in rounds) and len(set(rounds)) > 1
        assert set(Counter(keys).values()) == {15 // length}


@augmented_or_not
def test_small_sets_are_decoded_once_and_large_ones_alike(augments, tiny_config, monkeypatch):
    read = mock.Mock(side_effect=dataset.read_image)
    monkeypatch.setattr(dataset, 'read_image', read)
    cached = batches(tiny_config(), 0, 15, augments)
    size = 82 if augments else 32
    three_images = 3 * size * size * 4 / 1e6  # in color, as Pillow holds them
    for cache_mb, count in ((2000, 8), (0, 0), (three_images, 3)):
        read.reset_mock()
        assert same(cached, batches(tiny_config(), 0, 15, augments, cache_mb=cache_mb))
        opened = Counter(call.args[0] for call in read.call_args_list)
        assert len(opened) == 8 and sum(times == 1 for times in opened.values()) == count


@augmented_or_not
def test_batches_depend_on_seed_and_iteration_alone(augments, tiny_config):
    drawn = batches(tiny_config(), 0, 6, augments)
    for image in (image for batch in drawn for image in batch.values()):
        assert image.shape == (1, 3, 32, 32)
        assert -1 <= image.min() < -0.5 and image.max() <= 1
    assert same(drawn, batches(tiny_config(), 0, 6, augments, num_workers=3))
    assert same(drawn[4:], batches(tiny_config(), 4, 6, augments))
    assert not same(drawn, batches(tiny_config(seed=1), 0, 6, augments))


@augmented_or_not
def test_soft_masks_come_with_their_images_and_move_with_them(augments, tiny_config):
    config = tiny_config(batch_size=2)
    soft_masks = {path.stem: path for path in (config.data_folder / 'trainA').iterdir()}
    for batch in batches(config, 0, 6, augments, soft_masks):
        assert batch['mask'].shape == (2, 1, 32, 32)
        for image, mask in zip(batch['A'], batch['mask'], strict=True):
            gray = image.mean(0)  # of each image its gray values stand for its mask
            assert torch.corrcoef(torch.stack([gray.flatten(), mask.flatten()]))[0, 1] > 0.8


def test_augmentation_flips_crops_and_changes_contrast():
    image = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))).convert('RGB')
    rng = np.random.default_rng(0)
    augmented = [np.asarray(published_augmentation(image, (32, 32), rng), float)[..., 0]
                 for _ in range(60)]
    assert all(values.shape == (32, 32) for values in augmented)
    falling = sum(values[0, 0] > values[0, -1] for values in augmented)
    assert 15 < falling < 45  # half are flipped
    spans = [np.ptp(values) for values in augmented]  # a crop of 32 out of 82 px
    assert max(spans) < 0.55 * 255 and max(spans) / min(spans) > 1.1
