"""A full disk outside training: one line that names the file and what to do, exit code 1."""
from pathlib import Path
from unittest import mock

import nibabel
import pytest
from PIL import Image

from helpers import ONLY_MASKS, assert_one_line_error, draw_images, names
from nifti_files import head, store
from preparation import phantom

PREPARE = ['--dataset', 'Made', '--source_format', 'folders', '--img_size', 32, '--source']


def full(*arguments, **keywords):
    raise OSError(28, 'No space left on device')


@pytest.mark.parametrize('line, folder', [
    (['predict', '--output', 'out', '--input', 'in'], 'out'),
    (['predict', '--output', 'out/mask.nii.gz', '--input', 'head.nii'], 'out'),
    (['prepare', *PREPARE, 'in', 'in2'], 'data/Made'),
    (['test', *ONLY_MASKS], 'results/Tiny/test1/best'),
    (['val', '--postprocess', 'otsu'], 'results/Tiny/model1/val.json'),
    (['pseudo_mask'], 'results/Tiny/syn_trainA')], ids=lambda value: str(value[0]))
def test_a_full_disk(line, folder, stage_1, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw_images(tmp_path / 'in', ['a.png', 'b.png'])
    draw_images(tmp_path / 'in2', ['a.png', 'b.png'], seed=1)
    store(tmp_path / 'head.nii', head())
    before = names(stage_1.results), names(stage_1.results / 'model1'), names(stage_1.data.parent)
    with (mock.patch.object(Image.Image, 'save', full),
          mock.patch.object(nibabel.Nifti1Image, 'to_filename', full),
          mock.patch.object(Path, 'write_text', full)):
        result = stage_1.run('--phase', *line)
    last = result.stderr.splitlines()[-1]
    assert result.returncode == 1 and 'Traceback' not in result.stderr, result.stderr
    assert last.startswith('error: ') and folder in last, last
    assert last.endswith('cannot be written: No space left on device; make room on this disk')
    assert set(names(stage_1.results)) - set(before[0]) <= {'test1'}
    assert (names(stage_1.results / 'model1'), names(stage_1.data.parent)) == before[1:]
    assert not list(tmp_path.rglob('.*'))


def test_the_built_in_data_on_a_full_disk(places, tmp_path):
    with mock.patch.object(phantom, 'SUBSETS', phantom.SUBSETS[:1]):
        with mock.patch.object(Image.Image, 'save', full):
            result = places.run('--dataset', 'phantom', '--data_root', tmp_path / 'new')
        assert result.returncode == 1 and 'new/phantom/trainA/disease_0001.png' in result.stderr
    assert not names(tmp_path / 'new')


def test_names_of_data_sets_that_are_too_long(places):
    for phase in ('train', 'prepare', 'predict'):
        assert_one_line_error(places.run('--phase', phase, '--dataset', 'ä' * 120), '--dataset',
                              'too long', 'at most 200 bytes')
    assert not places.results.exists()
