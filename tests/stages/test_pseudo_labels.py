"""The teacher: which file it is, its soft masks as files, and pseudo-labels of them."""
import numpy as np
import torch
from PIL import Image

import dataset
from config import resolve
from helpers import TINY, assert_one_line_error, disc, names, read_pixels
from inference.metrics import jaccard
from stages.pseudo_labels import PseudoLabeler, choose_teacher, pseudo_labels

CPU = torch.device('cpu')


def config_of(places, **changed):
    return resolve({**TINY, 'stage': 2, 'dataset': 'Tiny', 'data_root': str(places.data.parent),
                    'result_dir': str(places.results.parent), **changed})


def test_a_pseudo_label_is_the_segmentation_of_a_soft_mask():
    lesion, shifted = (torch.from_numpy(disc((32, 32), (15, column), 8)) for column in (17, 19))
    image = torch.where(lesion, -0.5, 0.6).expand(1, 3, 32, 32)
    config = resolve({'stage': 2, 'keep_components': 'all'})

    def agreement(mask: torch.Tensor, rule: str) -> float:
        soft = torch.where(mask, 0.3, -0.9)[None, None]  # in [-1, 1], nowhere near 1
        label, = pseudo_labels(soft, image, rule, config)
        assert label.dtype == bool
        return jaccard(label, lesion.numpy())
    assert agreement(lesion, 'clean') > 0.95
    assert agreement(shifted, 'color_edges') > agreement(shifted, 'clean')


def test_pseudo_masks_are_the_soft_masks_of_stage_1(stage_1):
    before = names(stage_1.data)
    out = stage_1.done('--phase', 'pseudo_mask', '--tta', 'none')
    assert names(stage_1.data) == before  # nothing is written into the user's data set
    assert [out.count(f'syn_{split}') for split in ('trainA', 'valA', 'testA')] == [1, 1, 1]
    assert names(stage_1.results / 'syn_testA') == ['source.json', 't0.png', 't1.png', 't2.png',
                                                  'written.json']
    stage_1.done('--phase', 'test', '--postprocess', 'otsu')
    for name in ('t0.png', 't1.png', 't2.png'):
        tested = read_pixels(stage_1.results / 'test1' / 'best' / 'mask' / name)
        assert (read_pixels(stage_1.results / 'syn_testA' / name) == tested).all()


def test_soft_masks_of_the_user_stay(stage_1):
    folder, write = stage_1.results / 'syn_trainA', ['--phase', 'pseudo_mask']
    folder.mkdir()
    mine = folder / 'a0.png'
    mine.write_text('mine')
    assert_one_line_error(stage_1.run(*write), mine.name, 'did not write', 'move the folder')
    assert mine.read_text() == 'mine'
    mine.unlink()
    stage_1.done(*write)
    mine.write_text('edited by hand')
    stage_1.done(*write)  # by the same teacher they are as wanted
    assert_one_line_error(stage_1.run(*write, '--tta', 'flips'), mine.name, 'changed since')
    assert mine.read_text() == 'edited by hand'
    mine.unlink()
    stage_1.done(*write, '--tta', 'flips')


def test_soft_masks_are_made_again_only_for_another_teacher(stage_1):
    file = stage_1.results / 'model1' / 'best.pt'

    def time_of_writing(**changed):
        teacher = PseudoLabeler(config_of(stage_1, **changed), file, CPU)
        paths = dataset.list_images(stage_1.data / 'trainA')
        return teacher.masks('trainA', paths)['a0'].stat().st_mtime_ns
    first = time_of_writing()
    assert time_of_writing() == time_of_writing(seed=5) == first
    flipped = time_of_writing(tta='flips')
    assert flipped > first
    content = torch.load(file, weights_only=True)
    content['genA2B']['mask_decoder.output.weight'] += 0.1
    torch.save(content, file)
    assert time_of_writing(tta='flips') > flipped


def test_soft_masks_of_a_taught_network_lie_between_its_own_and_the_localizers(all_stages):
    def pixels(kind: str) -> np.ndarray:
        return read_pixels(all_stages.results / f'{kind}_trainA' / 'a0.png').astype(float)
    def soft_mask(share: float) -> np.ndarray:
        all_stages.done('--phase', 'pseudo_mask', '--localizer_share', share)
        return pixels('syn')
    localization, alone = pixels('localization'), soft_mask(0)
    assert (soft_mask(1) == localization).all() and not (alone == localization).all()
    assert np.abs(soft_mask(0.5) - (alone + localization) / 2).max() <= 0.5


def test_published_masks_are_read_where_present(places, small_stages):
    """Without any stage-1 network."""
    mask = Image.new('L', (40, 36))
    mask.paste(230, (12, 10, 24, 20))
    for split, images in (('trainA', 'trainA'), ('valA', 'val/images'), ('testA', 'testA')):
        (places.data / f'syn_{split}').mkdir()
        for name in names(places.data / images):
            mask.save(places.data / f'syn_{split}' / name)
    train = ['--phase', 'train', '--stage', 2, '--normal_batch', 1]
    out = places.done(*train)
    assert 'syn_*' in out and not (places.results / 'syn_trainA').exists()
    assert 'teacher.pt' not in names(places.results / 'model2')
    places.done('--phase', 'test', '--stage', 2)
    assert read_pixels(places.results / 'test2' / 'best' / 'teacher_mask' / 't0.png').max() == 230
    (places.data / 'syn_trainA' / 'a3.png').unlink()
    assert_one_line_error(places.run(*train), 'syn_trainA', 'no mask of a3.png')


def test_which_file_is_the_teacher(all_stages):
    places = all_stages
    model0, model1, model2 = (places.results / f'model{stage}' for stage in (0, 1, 2))
    assert choose_teacher(config_of(places)) == model1 / 'best.pt'
    assert choose_teacher(config_of(places, stage=1)) == model0 / 'best.pt'
    assert choose_teacher(config_of(places, teacher='x.pt')).name == 'x.pt'
    # a resumed run keeps the one that it began with
    assert choose_teacher(config_of(places), model2) == model2 / 'teacher.pt'
    (model2 / 'teacher.pt').unlink()
    assert choose_teacher(config_of(places), model2) == model1 / 'best.pt'
    (places.data / 'syn_trainA').mkdir()  # the data set brings masks along
    assert choose_teacher(config_of(places)) is None
