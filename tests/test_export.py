"""The network as an ONNX file, run without this project."""
import numpy as np
import pytest
import torch

import export
from conftest import STAGE_1, TINY_FLAGS, Places, assert_one_line_error
from predict import Segmenter

onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')
if tuple(int(part) for part in torch.__version__.split('.')[:2]) < (2, 6):
    pytest.skip('torch writes such files since 2.6', allow_module_level=True)

# kind of network: flags of training
KINDS = {
    'stage 1': [*STAGE_1, '--flips', 'True'],
    'stage 1, full': [*STAGE_1, '--light', 'False'],
    'stage 1, grey, second generation': [*STAGE_1, '--generation', 'second', '--img_ch', 1, '--augment',
                                         'False'],
}


@pytest.fixture
def places(data_root, tmp_path):
    return Places(data_root, tmp_path)


def run(path, *inputs):
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    names = [one.name for one in session.get_inputs()]
    return names, session.run(None, dict(zip(names, inputs)))[0]


def check(places, tmp_path, *more):
    """Export, and compare with torch on other sizes; the file and its segmenter."""
    done = places.run('--phase', 'export', '--output', tmp_path / 'out' / 'network.onnx', *more)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['network.onnx']
    checkpoint = done.stdout.split('checkpoint: ')[1].split('\n')[0]
    return tmp_path / 'out' / 'network.onnx', Segmenter(checkpoint, 'cpu', dataset='Tiny')


@pytest.mark.parametrize('flags', KINDS.values(), ids=KINDS)
def test_the_same_masks(places, tmp_path, flags):
    places.done(*TINY_FLAGS, *flags, '--iteration', 1, '--batch_size', 1)
    path, segmenter = check(places, tmp_path, *flags[:2])
    settings = segmenter.settings
    network = export.MaskOnly(segmenter.network, settings)
    rng = np.random.default_rng(1)
    for batch, height, width in ((1, 32, 32), (5, 32, 32), (2, 48, 64)):
        if not settings.light and (height, width) != (32, 32):
            continue
        image = rng.uniform(-1, 1, (batch, settings.img_ch, height, width)).astype(np.float32)
        names, made = run(path, image)
        with torch.inference_mode():
            expected = network(torch.from_numpy(image)).numpy()
        assert names == ['image'] and made.shape == (batch, 1, height, width)
        np.testing.assert_allclose(made, expected, atol=1e-4)
        assert made.std() > 0  # masks, not a constant


def test_locator(places, tmp_path):
    places.done(*TINY_FLAGS, '--stage', 0, '--iteration', 1, '--batch_size', 1)
    segmenter = Segmenter(places.results / 'model0' / 'best.pt', 'cpu', stage=0,
                          output=str(tmp_path / 'network.onnx'))
    segmenter.network.normal_level.fill_(-9)  # so early its evidence is below that of normal pictures
    assert export.run(segmenter.settings, segmenter) == 0
    image = np.random.default_rng(1).uniform(-1, 1, (2, 3, 48, 32)).astype(np.float32)
    with torch.inference_mode():
        expected = segmenter.network.predict_mask(torch.from_numpy(image)).mask.numpy()
    np.testing.assert_allclose(run(tmp_path / 'network.onnx', image)[1], expected, atol=1e-4)
    assert expected.std() > 0


def test_student_and_stage_2_as_published(places, tmp_path):
    places.done(*TINY_FLAGS, *STAGE_1, '--iteration', 1, '--batch_size', 1)
    places.done('--stage', 2, '--iteration', 1, '--batch_size', 1, '--ch', 4)
    path, segmenter = check(places, tmp_path, '--stage', 2)
    image = np.random.default_rng(1).uniform(-1, 1, (2, 3, 48, 32)).astype(np.float32)
    names, made = run(path, image)
    with torch.inference_mode():
        expected = export.MaskOnly(segmenter.network, segmenter.settings)(torch.from_numpy(image))
    np.testing.assert_allclose(made, expected.numpy(), atol=1e-4)

    path.unlink()
    places.done('--stage', 2, '--scheme', 'published', '--iteration', 1, '--batch_size', 1)
    path, _ = check(places, tmp_path, '--stage', 2)
    mask = np.random.default_rng(2).uniform(-1, 1, (2, 1, 48, 32)).astype(np.float32)
    names, made = run(path, image, mask)
    assert names == ['image', 'stage_1_mask'] and made.shape == (2, 1, 48, 32)
    assert np.abs(made - run(path, image, -mask)[1]).max() > 1e-3  # it looks at the mask


def test_files_that_differ_are_not_left(places, tmp_path, monkeypatch):
    places.done(*TINY_FLAGS, *STAGE_1, '--iteration', 1, '--batch_size', 1)
    monkeypatch.setattr(export, 'compare', lambda *_: 0.5)
    target = tmp_path / 'out' / 'network.onnx'
    target.parent.mkdir()
    target.write_text('an earlier one')
    done = places.run('--phase', 'export', '--output', target)
    assert done.returncode == 1 and 'not written, since its masks differ' in done.stderr
    assert [path.read_text() for path in target.parent.iterdir()] == ['an earlier one']


def test_bad_input(places, tmp_path):
    places.done(*TINY_FLAGS, *STAGE_1, '--iteration', 1, '--batch_size', 1)
    assert_one_line_error(places.run('--phase', 'export', '--output', tmp_path / 'x.pt'), '.onnx')
    assert_one_line_error(places.run('--phase', 'export', '--stage', 2), 'no checkpoint of stage 2')
