"""Volumes as images and back, in whatever orientation, unit and format the file stores them."""
import gzip
import itertools
import re
import tracemalloc
from collections.abc import Callable
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


def edited(path: Path, values: np.ndarray, affine: np.ndarray,
           edit: Callable[[nibabel.Nifti1Header], object] = lambda header: None,
           kind: type = nibabel.Nifti1Image) -> Path:
    """Write a volume whose header `edit` changes after all was set. Returns `path`."""
    data = kind(values, affine).to_bytes()
    header = kind.header_class(data[:kind.header_class.sizeof_hdr])
    edit(header)
    data = header.binaryblock + data[header.sizeof_hdr:]
    path.write_bytes(gzip.compress(data) if path.suffix == '.gz' else data)
    return path


def with_unit(unit: str) -> Callable[[nibabel.Nifti1Header], object]:
    return lambda header: header.set_xyzt_units(unit, 'sec')


def with_pixdim_1(header: nibabel.Nifti1Header) -> None:
    header['pixdim'][1:4] = 1


TWO_MM = np.diag([2.0, 2, 2, 1])
SHEARED = TWO_MM + np.outer([0, 1, 0, 0], [0, 0, 2 * np.tan(np.radians(20)), 0])


@pytest.mark.parametrize('affine, edit', (
    (TWO_MM, with_pixdim_1), (np.diag([-2, -2, 2, 1]), with_pixdim_1),
    (SHEARED, lambda header: header.__setitem__('qform_code', 0)),
    (np.diag([0.002, 0.002, 0.002, 1]), with_unit('meter')),
    (np.diag([2000, 2000, 2000, 1]), with_unit('micron')),
    (TWO_MM, lambda header: header.__setitem__('xyzt_units', 7))),
    ids=('pixdim', 'pixdim, LPS', 'tilted gantry', 'metre', 'micron', 'unknown unit'))
def test_sizes_are_those_of_the_affine_in_mm(tmp_path, affine, edit):
    values = head() if affine[0, 0] > 0 else head()[::-1, ::-1]
    volume = nifti.read(edited(tmp_path / 'a.nii', values, affine, edit))
    plain = nifti.read(edited(tmp_path / 'b.nii', head(), TWO_MM))
    assert volume.voxel_ml == pytest.approx(0.008) and volume.pixel_mm2 == pytest.approx(4)
    assert volume.box == plain.box
    np.testing.assert_array_equal(volume.image(10), plain.image(10))


def test_a_slice_of_sheared_rows_has_the_area_of_a_parallelogram(tmp_path):
    affine = TWO_MM + np.outer([1, 0, 0, 0], [0, 1, 0, 0])
    volume = nifti.read(edited(tmp_path / 'a.nii', head(), affine))
    assert volume.pixel_mm2 == pytest.approx(4) and volume.spacing[1] == pytest.approx(5 ** 0.5)


def turned(degrees: float) -> np.ndarray:
    """An affine turned about the axis that points upwards."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.block([[np.array([[cos, -sin], [sin, cos]]), np.zeros((2, 2))],
                     [np.zeros((2, 2)), np.eye(2)]])


@pytest.mark.parametrize('values, affine, message', (
    (head(), np.eye(4) + 0.125 * np.eye(4, k=3), ''),
    (head(), turned(0.2), ''),
    (head()[::-1, ::-1], np.diag([-1, -1, 1, 1]) + np.outer([29, 35, 0, 0], [0, 0, 0, 1]), ''),
    (head().transpose(2, 0, 1), np.eye(4)[:, [2, 0, 1, 3]], ''),
    (head()[..., None], np.eye(4), ''),
    (head(), np.eye(4) + 0.5 * np.eye(4, k=3), 'corners are up to 0.5 voxels apart'),
    (head(), turned(5), 'lies elsewhere in space than a.nii'),
    (head(), np.diag([1.09, 1.09, 1, 1]), 'lies elsewhere in space than a.nii'),
    (head()[::-1], np.eye(4)[[0, 1, 2, 3]] * [-1, 1, 1, 1], 'lies elsewhere in space than a.nii'),
    (head()[..., 1:], np.eye(4), '30×36×19 voxels, but a.nii has 30×36×20')))
def test_a_label_lies_on_the_grid_of_its_volume_or_not(tmp_path, values, affine, message):
    volume = nifti.read(edited(tmp_path / 'a.nii', head(), np.eye(4)))
    label = nifti.read(edited(tmp_path / 'label.nii', values, affine))
    if message:
        with pytest.raises(UserError, match=f'label.nii: .*{message}'):
            nifti.in_axes_of(volume, label)
    else:
        np.testing.assert_array_equal(nifti.in_axes_of(volume, label), volume.values)


def normalized(air: float) -> np.ndarray:
    """The head, its values of mean 0 and standard deviation 1, in air of that value."""
    values, inside = head(), head() > 0
    values[inside] = (values[inside] - values[inside].mean()) / values[inside].std()
    values[~inside] = air
    return values


def outlier(value: float, values: np.ndarray | None = None) -> np.ndarray:
    values = head() if values is None else values
    values[0, 0, 0] = values[-1, 2, -1] = value
    return values


def filled(value: float, values: np.ndarray, width: int = 2) -> np.ndarray:
    """With slabs of a value at two sides, as beyond a scanner's field of view."""
    values[:width] = values[-width:] = value
    return values


def noisy(scale: float, values: np.ndarray | None = None) -> np.ndarray:
    """Noise for air, of one sign where the scale is that of a scanner's."""
    noise = np.random.default_rng(0).normal(0, scale, SHAPE)
    return np.where(head() > 0, head() if values is None else values, np.abs(noise))


@pytest.mark.parametrize('values', (
    filled(-1024, noisy(2)), filled(np.nan, noisy(2)), filled(-1024, np.rint(noisy(2))),
    noisy(3e-7, normalized(0)),
    outlier(-32768), outlier(1e9), outlier(-np.inf), normalized(0), normalized(np.nan),
    normalized(-9), outlier(-32768, normalized(0)), outlier(-32768, normalized(np.nan)),
    np.where(head() > 0, head(), np.nan)),
    ids=('noise, -1024', 'noise, NaN', 'whole numbers, -1024', 'z-scored, nearly 0', 'low',
         'high', 'infinite', 'z-scored', 'z-scored in NaN', 'z-scored in -9',
         'z-scored, low', 'z-scored in NaN, low', 'in NaN'))
def test_the_head_is_found_and_air_is_black(tmp_path, capsys, volume, values):
    other = nifti.read(store(tmp_path / 'b.nii', values.astype(np.float32)))
    inside = head() > 0
    assert (other.head & inside).sum() > 0.98 * inside.sum()
    assert (other.head & ~inside).sum() <= 2  # outliers
    assert other.box == volume.box
    for z in (5, 10):
        np.testing.assert_allclose(other.image(z).astype(int), volume.image(z), atol=3)
    other.warn()
    stderr = capsys.readouterr().err
    assert stderr.count('\n') == ('infinite values' in stderr) == np.isinf(values).any()


def ball(air: str, beyond: str) -> tuple[np.ndarray, np.ndarray]:
    """A ball with a bright spot, in noise or in values of nearly 0 around its mean, beyond a field
    of view filled with -1024 or NaN; and where it is."""
    shape, rng = (30, 34, 26), np.random.default_rng(0)
    x, y, z = np.meshgrid(*[np.linspace(-1.15, 1.15, n) for n in shape], indexing='ij')
    inside = x ** 2 + y ** 2 + z ** 2 < 1
    values = np.where(inside, 300 + 60 * rng.random(shape), np.abs(rng.normal(0, 8, shape)))
    values[(x - 0.35) ** 2 + (y - 0.3) ** 2 + (z - 0.1) ** 2 < 0.09] = 900
    if air == 'z-scored':
        of_ball = values[inside]
        values = np.where(inside, (values - of_ball.mean()) / of_ball.std(),
                          rng.uniform(-1e-6, 1e-6, shape))
    beyond_view = {'round': x ** 2 + y ** 2 > 1.15 ** 2, 'slabs': np.abs(x) > 1.02}[
        beyond.split()[0]]
    values[beyond_view] = float(beyond.split()[1])
    return values, inside


@pytest.mark.parametrize('air, beyond', (
    ('noise', 'round nan'), ('noise', 'slabs nan'), ('noise', 'round -1024'),
    ('noise', 'slabs -1024'), ('z-scored', 'round nan'), ('z-scored', 'slabs nan')))
def test_fill_values_and_noise_are_both_air(tmp_path, air, beyond):
    values, inside = ball(air, beyond)
    volume = nifti.read(store(tmp_path / 'a.nii', values.astype(np.float32)))
    assert (volume.head & inside).sum() > 0.97 * inside.sum()
    assert (volume.head & ~inside).sum() < 0.01 * inside.sum()


@pytest.mark.parametrize('shape', sorted({*itertools.permutations((20, 20, 1)),
                                          *itertools.permutations((1, 1, 9))}))
def test_single_slices(tmp_path, shape):
    values = np.random.default_rng(0).uniform(100, 200, shape).astype(np.float32)
    for number, order in enumerate(itertools.permutations(range(3))):
        volume = nifti.read(store(tmp_path / f'{number}.nii', values, order))
        assert volume.values.shape == shape
        assert volume.image(0).max() > 0 and 0 < volume.head_share(0) <= 1


def test_a_warning_where_hardly_anything_is_air(tmp_path, capsys):
    values = np.random.default_rng(0).uniform(100, 200, SHAPE).astype(np.float32)
    nifti.read(store(tmp_path / 'patch.nii', values)).warn()
    line, = capsys.readouterr().err.splitlines()
    assert 'patch.nii: 9' in line and 'taken for head' in line
    without = edited(tmp_path / 'analyze.nii', head(), np.eye(4), without_transforms)
    nifti.read(without).warn()
    line, = capsys.readouterr().err.splitlines()
    assert 'analyze.nii: the header has no orientation' in line


def without_transforms(header: nibabel.Nifti1Header) -> None:
    header['sform_code'] = header['qform_code'] = 0


def broken_sform(value: float) -> Callable[[nibabel.Nifti1Header], None]:
    """The affine is in the qform alone; the sform has a code, and this value everywhere."""
    def edit(header: nibabel.Nifti1Header) -> None:
        header['sform_code'] = header['qform_code'] = 2
        header['srow_x'] = header['srow_y'] = header['srow_z'] = value
    return edit


@pytest.mark.parametrize('name, edit, kind, pack', (
    ('a.nii.gz', lambda header: None, nibabel.Nifti2Image, bytes),
    ('a.nii', lambda header: None, nibabel.Nifti1Image, gzip.compress),
    ('a.nii.gz', lambda header: None, nibabel.Nifti1Image, gzip.decompress),
    ('a.nii', broken_sform(0), nibabel.Nifti1Image, bytes),
    ('a.nii', broken_sform(np.nan), nibabel.Nifti2Image, bytes)),
    ids=('NIfTI-2', 'gzip named .nii', 'no gzip named .gz', 'zero sform', 'NaN sform'))
def test_formats_and_transforms_as_people_have_them(tmp_path, volume, name, edit, kind, pack):
    affine = turned(10) * [1, 2, 3, 1]
    path = edited(tmp_path / name, head(), affine, edit, kind)
    path.write_bytes(pack(path.read_bytes()))
    other = nifti.read(path)
    np.testing.assert_array_equal(other.image(10), volume.image(10))
    assert other.voxel_ml == pytest.approx(0.006)
    other.write((other.values == 400).astype(np.uint8), tmp_path / 'mask.nii')
    mask = nibabel.load(tmp_path / 'mask.nii')
    assert type(mask) is kind
    np.testing.assert_array_equal(mask.dataobj, head() == 400)
    np.testing.assert_allclose(mask.affine, affine, atol=1e-6)


def test_memory_is_what_the_limit_counts_on(tmp_path, monkeypatch):
    monkeypatch.setattr(nifti, 'CHUNK', 2 ** 14)
    path = store(tmp_path / 'a.nii', np.kron(head(), np.ones((3, 3, 3))), (1, 2, 0), (-1, 1, 1))
    nifti.read(path).image(0)  # what is loaded once
    tracemalloc.start()
    volume = nifti.read(path)
    assert volume.image(30).any() and volume.box
    assert tracemalloc.get_traced_memory()[1] < 11 * volume.values.size
    tracemalloc.stop()
    monkeypatch.setattr(nifti, 'MAX_VOXELS', volume.values.size - 1)
    with pytest.raises(UserError, match='a.nii: .*90.* voxels; at most'):
        nifti.read(path)


def spacing_of(value: float) -> Callable[[nibabel.Nifti1Header], None]:
    def edit(header: nibabel.Nifti1Header) -> None:
        without_transforms(header)
        header['pixdim'][2] = value
    return edit


def test_values_beyond_float32_and_extensions_of_any_length(tmp_path, capsys, recwarn, volume):
    affine = np.diag([1, 2, 3, 1])
    paths = [edited(tmp_path / f'{factor:g}.nii', head() * np.float64(factor), affine)
             for factor in (1e37, 1e-300)]
    paths.append(edited(tmp_path / 'slope.nii', head().astype(np.int16), affine,
                        lambda header: header.__setitem__('scl_slope', 1e38)))
    paths.append(edited(tmp_path / 'inter.nii', head().astype(np.int16), affine,
                        lambda header: header['scl_inter'].fill(np.nan)))
    start = paths[-1].read_bytes()
    header = nibabel.Nifti1Header(start[:348])
    header['vox_offset'] = 376
    paths.append(tmp_path / 'extension.nii')
    paths[-1].write_bytes(header.binaryblock + b'\1\0\0\0' + np.int32([20, 4]).tobytes()
                          + bytes(16) + start[352:])
    for path in paths:
        other = nifti.read(path)
        assert not other.infinite
        np.testing.assert_array_equal(other.head, volume.head)
        np.testing.assert_allclose(other.image(10).astype(int), volume.image(10), atol=3)
        other.write(other.head.astype(np.uint8), tmp_path / 'mask.nii')
        np.testing.assert_array_equal(nibabel.load(tmp_path / 'mask.nii').dataobj, volume.head)
    assert not capsys.readouterr().err and not recwarn.list


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
    wrong_checksum = bytearray(store(tmp_path / 'checksum.nii.gz', head()).read_bytes())
    wrong_checksum[-6] ^= 255
    (tmp_path / 'checksum.nii.gz').write_bytes(wrong_checksum)
    nibabel.save(nibabel.Nifti1Image(head() + 1j, np.eye(4)), tmp_path / 'complex.nii')
    for value in (1e30, 9e4, np.nan, 0):  # a slice that is too thin for an image, too
        edited(tmp_path / f'spacing{value}.nii', head(), np.eye(4), spacing_of(value))
    edited(tmp_path / 'offset.nii', head(), np.eye(4),
           lambda header: header.__setitem__('vox_offset', np.nan))
    for name, reason in (
            ('empty.nii', 'no NIfTI header'), ('text.nii.gz', 'no NIfTI header'),
            ('cut.nii.gz', ''), ('four.nii', '4 dimensions'), ('two.nii', '2 dimensions'),
            ('huge.nii', '30000×30000×30000 voxels'), ('checksum.nii.gz', 'CRC'),
            ('complex.nii', 'complex numbers'), ('spacing1e+30.nii', 'spacing of 1×1e'),
            ('spacing90000.0.nii', 'too large'), ('spacingnan.nii', 'spacing'),
            ('spacing0.nii', 'a spacing of 1×0×1 mm'),
            ('offset.nii', 'says that its voxels begin at byte nan')):
        with pytest.raises(UserError, match=f'{re.escape(name)}: cannot be .*{reason}') as error:
            nifti.read(tmp_path / name)
        assert '\n' not in str(error.value)
    assert nifti.read(tmp_path / 'fine.nii').values.shape == (4, 5, 6)


def test_names():
    assert nifti.stem(Path('a.b_flair.nii.gz')) == 'a.b_flair' and nifti.stem(Path('x.NII')) == 'x'
    assert nifti.is_volume(Path('x.NII.GZ')) and not nifti.is_volume(Path('x.gz'))
    # folders named as a volume that hold it, as in copies of BraTS
    for path, kind in (('x/B_1_seg.nii/00001.nii', 'seg'), ('x/B_1_t1.nii/B_2_flair.nii', 't1'),
                       ('x/x.nii/B_1_flair.nii', 'flair')):
        assert nifti.case_and_kind(Path(path)) == ('B_1', kind)
        assert nifti.case_folder(Path(path)) == Path('x')
    assert nifti.stem(nifti.named(Path('x/B_1_flair.nii.gz/00001.nii'))) == 'B_1_flair'
