"""Volumes as pictures and back, in whatever orientation the file stores them."""
from pathlib import Path

import nibabel
import numpy as np
import pytest

import volumes
from utils import UserError

SHAPE = 30, 36, 20  # to the right, to the front, upwards
ROTATION = np.array([[np.cos(0.2), -np.sin(0.2), 0], [np.sin(0.2), np.cos(0.2), 0], [0, 0, 1]])
STORED = {'canonical': ((0, 1, 2), (1, 1, 1)), 'to the left and back': ((0, 1, 2), (-1, -1, 1)),
          'sagittal first': ((2, 0, 1), (1, -1, 1)), 'upside down': ((1, 0, 2), (1, 1, -1))}


def head():
    """A head in air, its right half brighter, with a spot at its front."""
    values = np.zeros(SHAPE, np.float32)
    values[4:26, 3:33, 2:18] = np.linspace(60, 120, 30)[:, None]
    values[15:26, 3:33, 2:18] += 50
    values[18:23, 26:32, 8:13] = 400
    return values


def store(path, values, order=(0, 1, 2), signs=(1, 1, 1), spacing=(1, 2, 3), oblique=False):
    """Write canonical values as a scanner with other axes would."""
    affine = np.eye(4)
    affine[:3, :3] = np.diag(spacing)
    if oblique:
        affine[:3, :3] = ROTATION @ affine[:3, :3]
    affine[:3, 3] = -20, 7, 3
    stored, own = values.transpose(order), np.eye(4)
    own[:3, :3] = affine[:3, list(order)]
    own[:3, 3] = affine[:3, 3]
    for axis, sign in enumerate(signs):
        if sign < 0:
            stored = np.flip(stored, axis)
            own[:3, 3] += own[:3, axis] * (stored.shape[axis] - 1)
            own[:3, axis] *= -1
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(stored), own), path)
    return path


@pytest.mark.parametrize('oblique', (False, True), ids=('straight', 'oblique'))
@pytest.mark.parametrize('stored', STORED.values(), ids=STORED)
def test_pictures_do_not_depend_on_how_it_is_stored(tmp_path, stored, oblique):
    plain = volumes.read(store(tmp_path / 'a.nii', head()))
    other = volumes.read(store(tmp_path / 'b.nii.gz', head(), *stored, oblique=oblique))
    assert other.spacing == pytest.approx((1, 2, 3)) and other.values.shape == SHAPE
    for z in (0, 5, 10):
        np.testing.assert_array_equal(plain.picture(z), other.picture(z))

    # a mask of the spot comes back to the voxels of the spot, in the file's own axes
    mask = np.zeros(SHAPE, np.uint8)
    for z in other.slices:
        mask[..., z] = other.to_plane((other.picture(z) == 255).astype(np.uint8))
    other.write(mask, tmp_path / 'mask.nii.gz')
    source, written = (nibabel.load(tmp_path / name) for name in ('b.nii.gz', 'mask.nii.gz'))
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(written.dataobj) == 1, np.asarray(source.dataobj) == 400)
    np.testing.assert_allclose(written.affine, source.affine)
    for field in ('pixdim', 'sform_code', 'qform_code', 'xyzt_units'):
        np.testing.assert_array_equal(written.header[field], source.header[field])


def test_the_usual_view(tmp_path):
    picture = volumes.read(store(tmp_path / 'a.nii', head())).picture(10)
    rows, columns = np.nonzero(picture == 255)
    assert rows.mean() < picture.shape[0] / 2, 'the front is on top'
    brighter_half = np.nonzero(picture[16:] > 35)[1]
    assert brighter_half.mean() < picture.shape[1] / 2 > columns.mean(), 'right is on the left'


def test_pictures_are_square_in_mm_and_hold_the_head(tmp_path):
    volume = volumes.read(store(tmp_path / 'a.nii', head(), spacing=(1, 2, 3)))
    height, width = volume.picture(10).shape
    assert height * 2 == pytest.approx(width * 1, abs=2)  # 2 mm to the front, 1 mm to the right
    assert 0.9 * 22 * 30 <= (volume.picture(10) > 0).sum() <= 22 * 30  # black: the darkest of it
    assert volume.head_share(10) == pytest.approx(22 * 30 / (height * width))
    assert volume.head_share(0) == 0 and volume.picture(0).max() == 0


def test_brightness_is_that_of_the_whole_volume_whatever_its_unit(tmp_path):
    plain = volumes.read(store(tmp_path / 'a.nii', head()))
    scaled = volumes.read(store(tmp_path / 'b.nii', head() * 7.5 - 1000))
    np.testing.assert_allclose(plain.picture(10).astype(int), scaled.picture(10), atol=1)
    assert plain.picture(5).max() < 200 < 255 == plain.picture(10).max()  # the spot is in slice 10 alone


@pytest.mark.parametrize('values', (np.zeros(SHAPE), np.full(SHAPE, 3.0), np.full(SHAPE, np.nan)))
def test_constant_volumes_are_black(tmp_path, values):
    volume = volumes.read(store(tmp_path / 'a.nii', values.astype(np.float32)))
    assert volume.picture(3).max() == 0 and volume.head_share(3) == 0


def test_unusable_files(tmp_path):
    (tmp_path / 'empty.nii').touch()
    (tmp_path / 'text.nii.gz').write_text('no volume')
    whole = store(tmp_path / 'whole.nii.gz', np.random.default_rng(0).random(SHAPE, np.float32))
    (tmp_path / 'cut.nii.gz').write_bytes(whole.read_bytes()[:-5000])
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 3)), np.eye(4)), tmp_path / 'four.nii')
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4)), np.eye(4)), tmp_path / 'two.nii')
    huge = nibabel.Nifti1Header()
    huge.set_data_shape((30000, 30000, 30000))
    huge.set_data_dtype(np.uint8)
    (tmp_path / 'huge.nii').write_bytes(huge.binaryblock + bytes(100))
    for name in ('empty.nii', 'text.nii.gz', 'cut.nii.gz', 'four.nii', 'two.nii', 'huge.nii'):
        with pytest.raises(UserError, match=rf'{name}: cannot be read as a NIfTI volume') as error:
            volumes.read(tmp_path / name)
        assert '\n' not in str(error.value)
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 5, 6, 1)), np.eye(4)), tmp_path / 'fine.nii')
    assert volumes.read(tmp_path / 'fine.nii').values.shape == (4, 5, 6)


def test_names():
    assert volumes.stem(Path('a.b_flair.nii.gz')) == 'a.b_flair' and volumes.stem(Path('x.NII')) == 'x'
    assert volumes.is_volume(Path('x.NII.GZ')) and not volumes.is_volume(Path('x.gz'))
