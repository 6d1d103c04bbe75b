"""The network as an ONNX file, run without this project."""
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import checkpoint as checkpoints
from config import Config
from helpers import Places, assert_one_line_error, names, run_here
from inference import export
from networks import build_networks
from predict import Predictor
from utils import set_seed

onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')
if tuple(int(part) for part in torch.__version__.split('.')[:2]) < (2, 6):
    pytest.skip('torch writes such files since 2.6', allow_module_level=True)

# kind of network: its options; making a file takes seconds, and test-time augmentation repeats the
# network in it, so that each network and each feature is here once
KINDS = {'stage 1, gray, second generation': {'stage': 1, 'recipe': 'published',
                                              'generation': 'second', 'img_ch': 1},
         'student': {'stage': 2, 'tta': 'none'},
         'localizer': {'stage': 0, 'tta': 'none'}}


def run_file(path: Path, *inputs: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Names of the file's inputs, and its masks of these."""
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    input_names = [info.name for info in session.get_inputs()]
    return input_names, session.run(None, dict(zip(input_names, inputs, strict=True)))[0]


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def write_untrained(path: Path, config: Config) -> None:
    """A checkpoint of networks as they are before training."""
    set_seed(0)
    checkpoints.save(path, build_networks(config), config, 1, None, None, {})


def masks_of(predictor: Predictor, *inputs: np.ndarray) -> np.ndarray:
    """The masks that torch makes, as the file has to make them."""
    network = export.MaskOnly(predictor.network, predictor.config)
    with torch.inference_mode():
        return network(*map(torch.from_numpy, inputs)).numpy()


@pytest.mark.slow
@pytest.mark.parametrize('options', KINDS.values(), ids=KINDS)
def test_the_same_masks(tiny_config: Callable[..., Config], tmp_path: Path,
                        options: dict[str, Any]) -> None:
    write_untrained(tmp_path / 'best.pt', tiny_config(**options))
    path = tmp_path / 'network.onnx'
    predictor = Predictor(tmp_path / 'best.pt', 'cpu', output=str(path))
    if options['stage'] == 0:  # untrained, its logits are not above those of normal images
        predictor.network.normal_logit.fill_(-9)
    assert export.run(predictor.config, predictor) == 0
    for batch, height, width in ((1, 32, 32), (5, 32, 32), (2, 48, 64)):
        image = noise(1, batch, predictor.config.img_ch, height, width)
        input_names, masks = run_file(path, image)
        with torch.inference_mode():
            expected = predictor.network.predict_mask(torch.from_numpy(image)).mask.numpy()
        assert input_names == ['image'] and masks.shape == (batch, 1, height, width)
        np.testing.assert_allclose(masks, expected, atol=1e-4)
        assert masks.std() > 0  # masks, not a constant


@pytest.mark.slow
def test_a_full_generator_from_the_command_line(tiny_config: Callable[..., Config],
                                                tmp_path: Path) -> None:
    """Of one size, with test-time augmentation in the file."""
    checkpoint, path = tmp_path / 'best.pt', tmp_path / 'out' / 'network.onnx'
    write_untrained(checkpoint, tiny_config(stage=1, recipe='published', light=False))
    result = run_here('--phase', 'export', '--checkpoint', checkpoint, '--output', path,
                      '--tta', 'mirror', '--device', 'cpu')
    assert result.returncode == 0, result.stderr
    assert f'checkpoint: {checkpoint}\n' in result.stdout
    assert 'for images of 32×32 px, any number at a time' in result.stdout
    assert names(tmp_path / 'out') == ['network.onnx']
    image = noise(1, 5, 3, 32, 32)
    input_names, masks = run_file(path, image)
    assert input_names == ['image'] and masks.shape == (5, 1, 32, 32) and masks.std() > 0
    mirrored, plain = (masks_of(Predictor(checkpoint, 'cpu', tta=tta), image)
                       for tta in ('mirror', 'none'))
    np.testing.assert_allclose(masks, mirrored, atol=1e-4)
    assert np.abs(masks - plain).max() > 1e-3


@pytest.mark.slow
def test_the_published_stage_2_takes_a_conditioning_image(tiny_config: Callable[..., Config],
                                                          tmp_path: Path) -> None:
    write_untrained(tmp_path / 'teacher.pt', tiny_config(stage=1, recipe='published'))
    write_untrained(tmp_path / 'best.pt', tiny_config(stage=2, recipe='published'))
    path = tmp_path / 'network.onnx'
    predictor = Predictor(tmp_path / 'best.pt', 'cpu', output=str(path))
    assert export.run(predictor.config, predictor) == 0
    image, conditioning = noise(1, 2, 3, 48, 32), noise(2, 2, 1, 48, 32)
    input_names, masks = run_file(path, image, conditioning)
    assert input_names == ['image', 'conditioning'] and masks.shape == (2, 1, 48, 32)
    np.testing.assert_allclose(masks, masks_of(predictor, image, conditioning), atol=1e-4)
    assert np.abs(masks - run_file(path, image, -conditioning)[1]).max() > 1e-3


def test_files_that_differ_are_not_kept(stage_1_run: Places, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, 'write', lambda network, path, *_: path.write_text('different'))
    monkeypatch.setattr(export, 'compare', lambda *_: 0.5)
    target = tmp_path / 'out' / 'network.onnx'
    target.parent.mkdir()
    target.write_text('an earlier one')
    result = stage_1_run.run('--phase', 'export', '--output', target)
    assert result.returncode == 1 and 'not written, since its masks differ' in result.stderr
    assert [path.read_text() for path in target.parent.iterdir()] == ['an earlier one']


def test_bad_input(stage_1_run: Places, tmp_path: Path) -> None:
    assert_one_line_error(
        stage_1_run.run('--phase', 'export', '--output', tmp_path / 'x.pt'), '.onnx')
    assert_one_line_error(
        stage_1_run.run('--phase', 'export', '--stage', 2), 'no checkpoint of stage 2')
