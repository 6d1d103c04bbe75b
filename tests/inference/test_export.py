"""The network as an ONNX file, run without this project."""
import numpy as np
import pytest
import torch

import checkpoint as checkpoints
from helpers import assert_one_line_error, names, run_here
from inference import export
from inference.soft_masks import outputs
from networks import build_networks
from predict import Predictor
from utils import set_seed

onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

# kind of network: its options; each feature is here once, since writing a file takes seconds
KINDS = {'full generator, gray, mirrored': {'stage': 1, 'recipe': 'published', 'light': False,
                                            'generation': 'second', 'img_ch': 1, 'tta': 'mirror'},
         'published stage 2': {'stage': 2, 'recipe': 'published', 'tta': 'none'},
         'student': {'stage': 2, 'tta': 'none'},
         'localizer': {'stage': 0, 'tta': 'none'}}


def write_untrained(path, config):
    """A checkpoint of networks as they are before training."""
    set_seed(0)
    networks = build_networks(config)
    if config.stage == 0:  # its logits are not above those of normal images yet
        networks['localizer'].normal_logit.fill_(-9)
    checkpoints.save(path, networks, config, 1, None, None, {})


@pytest.mark.slow
@pytest.mark.parametrize('options', KINDS.values(), ids=KINDS)
def test_the_same_masks(tiny_config, tmp_path, options):
    config = tiny_config(**options)
    checkpoint, path = tmp_path / 'best.pt', tmp_path / 'out' / 'network.onnx'
    write_untrained(tmp_path / 'teacher.pt', tiny_config(stage=1, recipe='published'))
    write_untrained(checkpoint, config)
    result = run_here('--phase', 'export', '--checkpoint', checkpoint, '--output', path,
                      '--device', 'cpu')
    assert result.returncode == 0, result.stderr
    assert f'checkpoint: {checkpoint}\n' in result.stdout and names(path.parent) == [path.name]
    assert ('32×32 px, any number at a time' in result.stdout) == (not config.light)
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    about = session.get_modelmeta().custom_metadata_map
    assert about == {'height': '32', 'width': '32', 'color': 'L' if config.img_ch == 1 else 'RGB',
                     'mean': '127.5', 'std': '127.5', 'class': 'lesion', 'postprocess':
                     'otsu' if config.recipe == 'published' else 'color_edges'}
    input_names = [info.name for info in session.get_inputs()]
    conditioned = options.get('recipe') == 'published' and config.stage == 2
    assert input_names == ['image', 'conditioning'][:1 + conditioned]

    def masks_of_file(*inputs):
        return session.run(None, dict(zip(input_names, inputs, strict=True)))[0]

    def masks_of_torch(*inputs, **changed):
        predictor = Predictor(checkpoint, 'cpu', **changed)
        batch = dict(zip(('image', 'mask'), map(torch.from_numpy, inputs), strict=False))
        of_images = outputs(predictor.network, batch, predictor.config, torch.device('cpu'))
        return np.stack([output.mask for output in of_images])[:, None]
    rng = np.random.default_rng(1)
    # a full generator takes the size of its training only
    for batch, height, width in ((5, 32, 32), (2, 48, 64))[:1 + config.light]:
        inputs = [rng.uniform(-1, 1, (batch, channels, height, width)).astype(np.float32)
                  for channels in (config.img_ch, 1)[:1 + conditioned]]
        inputs[0][:, :, :4] = -1  # black background, where the second generation has no mask
        masks = masks_of_file(*inputs)
        assert masks.shape == (batch, 1, height, width) and masks.std() > 0  # not a constant
        np.testing.assert_allclose(masks, masks_of_torch(*inputs), atol=1e-4)
    if conditioned:
        assert np.abs(masks - masks_of_file(inputs[0], -inputs[1])).max() > 1e-3
    if config.tta == 'mirror':
        assert np.abs(masks - masks_of_torch(*inputs, tta='none')).max() > 1e-3


def test_files_that_differ_are_not_kept(stage_1_run, tmp_path, monkeypatch):
    monkeypatch.setattr(export, 'write', lambda network, path, *_: path.write_text('different'))
    monkeypatch.setattr(export, 'compare', lambda *_: 0.5)
    target = tmp_path / 'network.onnx'
    target.write_text('an earlier one')
    line = ['--phase', 'export', '--output']
    for wrong in (target, tmp_path / 'Network.ONNX'):
        assert_one_line_error(stage_1_run.run(*line, wrong), f'{target} exists already',
                              '--overwrite')
    copy = tmp_path / 'copy.onnx'
    copy.write_bytes((stage_1_run.results / 'model1' / 'best.pt').read_bytes())
    for more in ([], ['--overwrite']):
        assert_one_line_error(stage_1_run.run(*line, copy, '--checkpoint', copy, *more), '--output')
    copy.unlink()
    result = stage_1_run.run(*line, target, '--overwrite')
    assert result.returncode == 1 and 'not written, since its masks differ' in result.stderr
    assert [path.read_text() for path in tmp_path.iterdir()] == ['an earlier one']


def test_bad_input(stage_1_run, tmp_path):
    for wrong, part in ((['--output', tmp_path / 'x.pt'], '.onnx'),
                        (['--stage', 2], 'no checkpoint of stage 2')):
        assert_one_line_error(stage_1_run.run('--phase', 'export', *wrong), part)
