"""Volumes as images and back, in whatever orientation the file stores them."""
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nifti_files import SHAPE, head, store
from preparation import nifti
from utils import UserError

STORED = {'canonical': ((0, 1, 2), (1, 1, 1)), 'to the left and back': ((0, 1, 2), (-1, -1, 1)),
          'sagittal first': ((2, 0, 1), (1, -1, 1)), 'upside down': ((1, 0, 2), (1, 1, -1))}


@pytest.fixture
def volume(tmp_path: Path) -> nifti.Volume:
    return nifti.read(store(tmp_path / 'a.nii', head()))


@pytest.mark.parametrize('oblique', (False, True), ids=('straight', 'oblique'))
@pytest.mark.parametrize('stored', STORED.values(), ids=STORED)
def test_images_do_not_depend_on_how_it_is_stored(volume, tmp_path, stored, oblique):
    other = nifti.read(store(tmp_path / 'b.nii.gz', head(), *stored, oblique=oblique))
    assert other.spacing == pytest.approx((1, 2, 3)) and other.values.shape == SHAPE
    for z in (0, 5, 10):
        np.testing.assert_array_equal(volume.image(z), other.image(z))
    # a mask of the spot comes back to the voxels of the spot, in the file's own axes
    mask = np.zeros(SHAPE, np.uint8)
    for z in other.slices:
        mask[..., z] = other.to_plane((other.image(z) == 255).astype(np.uint8))
    other.write(mask, tmp_path / 'mask.nii.gz')
    source, written = (nibabel.load(tmp_path / name) for name in ('b.nii.gz', 'mask.nii.gz'))
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(written.dataobj) == 1,
                                  np.asarray(source.dataobj) == 400)
    np.testing.assert_allclose(written.affine, source.affine)
    for field in ('pixdim', 'sform_code', 'qform_code', 'xyzt_units'):
        np.testing.assert_array_equal(written.header[field], source.header[field])


def test_the_usual_view_square_in_mm(volume):
    image = volume.image(10)
    height, width = image.shape
    rows, columns = np.nonzero(image == 255)
    assert rows.mean() < height / 2, 'the front is on top'
    brighter_half = np.nonzero(image[16:] > 35)[1]
    assert brighter_half.mean() < width / 2 > columns.mean(), 'right is on the left'
    assert height * 2 == pytest.approx(width * 1, abs=2)  # 2 mm to the front, 1 mm to the right
    assert 0.9 * 22 * 30 <= (image > 0).sum() <= 22 * 30  # the darkest of the head is black
    assert volume.head_share(10) == pytest.approx(22 * 30 / (height * width))
    assert volume.head_share(0) == 0 and volume.image(0).max() == 0


def test_brightness_is_scaled_by_the_whole_volume_whatever_its_unit(volume, tmp_path):
    scaled = nifti.read(store(tmp_path / 'b.nii', head() * 7.5 - 1000))
    np.testing.assert_allclose(volume.image(10).astype(int), scaled.image(10), atol=1)
    assert volume.image(5).max() < 200 < 255 == volume.image(10).max()  # which has the spot


@pytest.mark.parametrize('values', (np.zeros(SHAPE), np.full(SHAPE, 3.0), np.full(SHAPE, np.nan)))
def test_constant_volumes_are_black(tmp_path, values):
    volume = nifti.read(store(tmp_path / 'a.nii', values.astype(np.float32)))
    assert volume.image(3).max() == 0 and volume.head_share(3) == 0


def test_unusable_files(tmp_path):
    (tmp_path / 'empty.nii').touch()
    (tmp_path / 'text.nii.gz').write_text('no volume')
    cut = store(tmp_path / 'cut.nii.gz', np.random.default_rng(0).random(SHAPE, np.float32))
    cut.write_bytes(cut.read_bytes()[:-5000])
    for name, shape in (('four', (4, 4, 4, 3)), ('two', (4, 4)), ('fine', (4, 5, 6, 1))):
        nibabel.save(nibabel.Nifti1Image(np.ones(shape), np.eye(4)), tmp_path / f'{name}.nii')
    huge = nibabel.Nifti1Header()
    huge.set_data_shape((30000, 30000, 30000))
    huge.set_data_dtype(np.uint8)
    (tmp_path / 'huge.nii').write_bytes(huge.binaryblock + bytes(100))
    for name in ('empty.nii', 'text.nii.gz', 'cut.nii.gz', 'four.nii', 'two.nii', 'huge.nii'):
        with pytest.raises(UserError, match=rf'{name}: cannot be read as a NIfTI volume') as error:
            nifti.read(tmp_path / name)
        assert '\n' not in str(error.value)
    assert nifti.read(tmp_path / 'fine.nii').values.shape == (4, 5, 6)


def test_names():
    assert nifti.stem(Path('a.b_flair.nii.gz')) == 'a.b_flair' and nifti.stem(Path('x.NII')) == 'x'
    assert nifti.is_volume(Path('x.NII.GZ')) and not nifti.is_volume(Path('x.gz'))
