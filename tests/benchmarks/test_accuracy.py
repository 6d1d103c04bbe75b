"""The parts of benchmarks/accuracy.py and class_activation.py that need no training."""
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import accuracy
import gray_levels
from class_activation import PretrainedClassifier, in_own_size, layer_cam
from config import resolve
from inference.postprocess import PSEUDO_LABEL_RULES
from utils import area_under_curve

SQUARE = np.zeros((64, 64), bool)
SQUARE[20:44, 20:44] = True


def test_layer_cam_is_the_mean_of_maps_that_positive_gradients_weight():
    fine = torch.zeros(1, 2, 4, 4, requires_grad=True)
    coarse = torch.zeros(1, 2, 2, 2, requires_grad=True)
    with torch.no_grad():
        fine[0, :, 1, 2], coarse[0, :, 0, 1] = torch.tensor([3.0, 5.0]), torch.tensor([2.0, 7.0])
    # the second channel speaks against the disease, so it does not count
    logit = sum((part[:, 0] - part[:, 1]).sum((1, 2)) for part in (fine, coarse))
    soft = layer_cam(logit, [fine, coarse], (4, 4))
    alone = [layer_cam((part[:, 0] - part[:, 1]).sum((1, 2)), [part], (4, 4))
             for part in (fine, coarse)]
    assert soft.shape == (1, 1, 4, 4) and not soft.requires_grad
    assert alone[0][0, 0, 1, 2] == 1 and alone[0].sum() == 1
    assert alone[1].amax() == alone[1][0, 0, 0, 3] == 1
    assert torch.equal(soft, (alone[0] + alone[1]) / 2)


def test_layer_cam_of_one_image_does_not_depend_on_its_batch():
    config = resolve({'stage': 2, 'img_size': 64})
    network = PretrainedClassifier(config).eval()
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    logit, features = network(image)
    assert [feature.shape[2] for feature in features] == [4, 2]
    alone = layer_cam(*network(image[1:]), (64, 64))
    torch.testing.assert_close(layer_cam(logit, features, (64, 64))[1:], alone,
                               atol=1e-3, rtol=1e-3)


def test_area_under_curve_and_soft_masks_in_the_size_of_their_images():
    assert area_under_curve(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1
    assert area_under_curve(np.array([0.0, 2.0]), np.array([1.0])) == 0.5
    soft, = in_own_size(iter([np.ones((8, 8), np.float32)]), [np.zeros((20, 30, 3), np.uint8)])
    assert soft.shape == (20, 30) and (soft == 255).all()


@pytest.mark.parametrize('rule, levels', [
    (gray_levels.dark_in_the_middle, (220, 60)), (gray_levels.dark_in_the_tissue, (150, 40)),
    (gray_levels.bright_in_the_head, (90, 220))])
def test_gray_level_rules_find_a_square(rule, levels):
    gray = np.where(SQUARE, levels[1], levels[0]).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    soft = rule(np.stack([gray] * 3, 2))
    found = accuracy.segment(accuracy.to_bytes(soft), 'otsu')
    assert accuracy.mean_ja([found], [SQUARE.repeat(4, 0).repeat(4, 1)]) > 70


def test_dark_in_the_tissue_leaves_out_where_there_is_no_echo():
    image = np.full((128, 128, 3), 150, np.uint8)
    image[:, 80:] = 0
    assert not gray_levels.dark_in_the_tissue(image)[:, 110:].any()


def test_refinement_takes_the_threshold_that_is_best_on_val():
    image = np.where(SQUARE, 200, 60).astype(np.uint8)[..., None].repeat(3, 2)
    val = accuracy.Cases([Path('a')], [image], [SQUARE])
    soft = np.where(SQUARE, 60, 0).astype(np.uint8)
    soft[:16] = 255  # alone above Otsu's threshold
    level, rule = accuracy.choose_refinement([soft], val, 'all')
    assert level is not None and level < 60 / 255 and rule in PSEUDO_LABEL_RULES
    even = np.where(SQUARE, 255, 0).astype(np.uint8)
    assert accuracy.choose_refinement([even], val, 'all')[0] is None  # Otsu's, if equal


def test_every_default_row_is_trained_with_what_the_program_knows(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, 'argv', ['', str(tmp_path), '--data_root', str(tmp_path),
                                      '--profile', 'generic', '--student', '--img_size 96'])
    options = accuracy.parse_options()
    assert options.output == tmp_path / 'generic'
    experiment = accuracy.Experiment(options, 'ISIC', 3)
    assert experiment.config().profile == 'generic' and experiment.config().seed == 3
    for training in {source for source, _ in accuracy.ROWS.values() if source not in (
            accuracy.GRAY_LEVELS, accuracy.PRETRAINED)}:
        flags = experiment.flags(training)
        accuracy.build_parser().parse_args(flags)
        assert ('--profile' in flags) != ('published' in flags)
    assert accuracy.FINAL in options.rows and 'ours, stage 1' not in options.rows
    assert experiment.flags(accuracy.STAGE_2)[:2] == ['--img_size', '96']


def test_tables(capsys):
    cases = {str(index): dict.fromkeys(accuracy.metrics.METRICS, 50.0) for index in range(4)}
    run = {'chosen': 'otsu', 'cases': cases}
    accuracy.print_tables('ISIC', {'CAM': [run | {'auc': 80.0}, run | {'auc': 90.0}],
                                   accuracy.FINAL: [run, run]})
    printed = capsys.readouterr().out
    assert '| CAM (2) | 50.0 ± 0.0 |' in printed and '- CAM: 85.0 ± 7.1' in printed
    assert '- CAM: +0.0 [0.0, 0.0]' in printed
