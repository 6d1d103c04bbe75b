"""The teacher: which file it is, its soft masks as files, and pseudo-labels of them."""
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import checkpoint as checkpoints
import dataset
from config import resolve
from helpers import Places, assert_one_line_error, disc, names, read_pixels
from inference.metrics import jaccard
from stages.pseudo_labels import PseudoLabeler, choose_teacher, localizer_behind, pseudo_labels
from utils import UserError

CPU = torch.device('cpu')


def config_of(places: Places, **changed):
    return resolve({'dataset': 'Tiny', 'data_root': str(places.data.parent), 'device': 'cpu',
                    'result_dir': str(places.results.parent), 'num_workers': 0, 'stage': 2,
                    'img_size': 32, 'n_dis': 4, **changed})


# ---------------------------------------------------------------------------------- pseudo-labels


def test_a_pseudo_label_is_the_segmentation_of_a_soft_mask():
    lesion = torch.from_numpy(disc((32, 32), (15, 17), 8))
    soft = torch.where(lesion, 0.3, -0.9)[None, None]  # in [-1, 1], nowhere near 1
    image = torch.where(lesion, -0.5, 0.6).expand(1, 3, 32, 32)
    config = resolve({'stage': 2, 'keep_components': 'all'})
    label, = pseudo_labels(soft, None, config, refine=False)
    assert label.dtype == bool and jaccard(label, lesion.numpy()) > 0.95
    shifted = torch.where(torch.from_numpy(disc((32, 32), (15, 19), 8)), 0.3, -0.9)[None, None]
    label, = pseudo_labels(shifted, None, config, refine=False)
    refined, = pseudo_labels(shifted, image, config, refine=True)
    assert jaccard(refined, lesion.numpy()) > jaccard(label, lesion.numpy())


# ----------------------------------------------------------------------------- soft masks as files


def test_pseudo_masks_are_the_soft_masks_of_stage_1(stage_1):
    before = names(stage_1.data)
    out = stage_1.done('--phase', 'pseudo_mask', '--tta', 'none')
    assert names(stage_1.data) == before  # nothing is written into the user's data set
    assert [out.count(f'syn_{split}') for split in ('trainA', 'valA', 'testA')] == [1, 1, 1]
    assert names(stage_1.results / 'syn_testA') == ['source.json', 't0.png', 't1.png', 't2.png']
    stage_1.done('--phase', 'test', '--postprocess', 'otsu')
    for stem in ('t0', 't1', 't2'):
        assert (read_pixels(stage_1.results / 'syn_testA' / f'{stem}.png')
                == read_pixels(stage_1.results / 'test1' / 'best' / 'mask' / f'{stem}.png')).all()


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
    places = all_stages

    def soft_mask(share):
        places.done('--phase', 'pseudo_mask', '--localizer_share', share)
        return read_pixels(places.results / 'syn_trainA' / 'a0.png').astype(float)

    localization = read_pixels(places.results / 'localization_trainA' / 'a0.png').astype(float)
    alone = soft_mask(0)
    assert (soft_mask(1) == localization).all() and not (alone == localization).all()
    assert np.abs(soft_mask(0.5) - (alone + localization) / 2).max() <= 0.5


def test_published_masks_are_read_where_present(places, small_stages):
    """Without any stage-1 network."""
    mask = np.zeros((36, 40), np.uint8)
    mask[10:20, 12:24] = 230
    for split, images in (('trainA', 'trainA'), ('valA', 'val/images'), ('testA', 'testA')):
        folder = places.data / f'syn_{split}'
        folder.mkdir()
        for path in (places.data / images).iterdir():
            Image.fromarray(mask).save(folder / f'{path.stem}.png')
    train = ['--phase', 'train', '--stage', 2, '--normal_batch', 1]
    out = places.done(*train)
    assert 'syn_*' in out and not (places.results / 'syn_trainA').exists()
    assert 'teacher.pt' not in names(places.results / 'model2')
    places.done('--phase', 'test', '--stage', 2)
    assert read_pixels(places.results / 'test2' / 'best' / 'stage1_mask' / 't0.png').max() == 230
    (places.data / 'syn_trainA' / 'a3.png').unlink()
    assert_one_line_error(places.run(*train), 'syn_trainA', 'no mask of a3.png')


# ------------------------------------------------------------------------------ which file it is


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
    (places.data / 'syn_trainA').rmdir()
    shutil.rmtree(model1)
    with pytest.raises(UserError, match='a stage-1 network is needed: .*--teacher'):
        choose_teacher(config_of(places))


def test_the_localizer_behind_a_teacher_is_found_and_kept(all_stages_run, stage_1_run, tmp_path):
    best = checkpoints.read(all_stages_run.results / 'model1' / 'best.pt')
    assert localizer_behind(best) == all_stages_run.results / 'model1' / 'teacher.pt'
    teacher = PseudoLabeler(config_of(all_stages_run), best.path, CPU)
    assert teacher.localizer.config['stage'] == 0 and teacher.prefix == 'syn'
    teacher.keep_copies(tmp_path)
    assert names(tmp_path) == ['localizer.pt', 'teacher.pt']
    copies = PseudoLabeler(config_of(all_stages_run), tmp_path / 'teacher.pt', CPU)
    assert copies.localizer.path == tmp_path / 'localizer.pt'
    assert copies._source() == teacher._source()

    of_stage_0 = PseudoLabeler(config_of(all_stages_run),
                               all_stages_run.results / 'model0' / 'best.pt', CPU)
    assert of_stage_0.prefix == 'localization' and of_stage_0.localizer is of_stage_0.checkpoint
    untaught = PseudoLabeler(config_of(stage_1_run), stage_1_run.results / 'model1' / 'best.pt',
                             CPU)
    assert untaught.localizer is None and untaught.taught_by is None


def test_a_teacher_of_the_wrong_stage(stage_1_run):
    best = stage_1_run.results / 'model1' / 'best.pt'
    with pytest.raises(UserError, match='of stage 1; the teacher has to be .* of stage 0$'):
        PseudoLabeler(config_of(stage_1_run, stage=1), best, CPU)
