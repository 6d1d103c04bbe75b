"""Random NIfTI volumes through predict, with a known answer: bright is lesion.

    python benchmarks/fuzz_volumes.py [--count 500] [--seed 0]

Writes heads with a bright lesion under random headers (spacing, orientation, rotation, shear,
units, scaling, type, sform and qform, NIfTI-1 and 2, gzip, …), byte by byte, and some that have to
be refused. A Predictor whose soft mask is the image's brightness segments them. Voxels and affine
of the masks, ml and mm² are compared with what the header was made of; no input may change, and
what is refused is named in one line. Failures are printed; with one the exit code is 1."""
import gzip
import hashlib
import io
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from common import fuzz_options

# isort: split
import nibabel
import numpy as np
from nibabel.quaternions import mat2quat

import predict
from config import resolve
from helpers import read_csv

AT_A_TIME = 10  # volumes in a folder
TYPES = ['u1', 'i1', 'u2', 'i2', 'u4', 'i4', 'u8', 'i8', 'f4', 'f8']
MILLIMETERS = {0: 1, 1: 1000, 2: 1, 3: 0.001, 4: 1, 7: 1}  # by xyzt_units: none, m, mm, µm; unknown
REFUSED = {  # what may be wrong → part of the message
    'spacing 1e30': 'spacing', 'spacing NaN': 'spacing', 'complex': 'complex', 'color': 'color',
    'short': 'shorter than', 'checksum': 'CRC', 'cut gzip': 'end-of-stream',
    'text': 'no NIfTI header', 'four dimensions': '4 dimensions'}


class Answer(NamedTuple):
    """What has to come out, in the axes of the file."""

    lesion: np.ndarray  # bool, of the file's shape
    affine: np.ndarray  # 4×4, in the unit of the header
    voxel_ml: float
    pixel_mm2: float  # of axial slices


class Volume(NamedTuple):
    name: str
    description: str
    answer: Answer | None  # None: has to be refused
    reason: str  # part of the line on stderr that it gets, '' for none


class BrightIsLesion(predict.Predictor):
    """A Predictor without a network: the soft mask is the image's brightness."""

    def __init__(self, **options: Any) -> None:
        self.config = resolve({'phase': 'predict', 'device': 'cpu', 'num_workers': 0} | options)
        self.rule, self.exponent, self.stage1 = 'threshold', 1.0, None
        self.files = []

    def _soft_masks(self, images: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for image in images:
            yield np.asarray(predict.as_rgb(image)), image.astype(np.float32) / 255


def draw_head(rng: np.random.Generator, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """Values in canonical axes, float64, the lesion, bool, and what kind of values they are."""
    x, y, z = np.meshgrid(*[np.linspace(-1.2, 1.2, n) for n in shape], indexing='ij')
    head = x ** 2 + y ** 2 + z ** 2 < 1
    center = rng.uniform(-0.3, 0.3, 3)
    lesion = (x - center[0]) ** 2 + (y - center[1]) ** 2 + (z - center[2]) ** 2 < 0.35 ** 2
    values = np.where(head, 300 + 60 * rng.random(shape), 0.0)
    values[lesion] = 900
    kind = str(rng.choice(['plain', 'plain', 'noise in air', 'z-scored', 'NaN in air',
                           'z-scored, NaN in air', 'low outlier', 'high outlier', 'infinite']))
    if kind == 'noise in air':
        values[~head] = 8 * rng.random((~head).sum())
    if kind.startswith('z-scored'):
        values[head] = (values[head] - values[head].mean()) / values[head].std()
    if kind.endswith('NaN in air'):
        values[~head] = np.nan
    corner = tuple(rng.choice([0, -1], 3))
    if kind.endswith('outlier') or kind == 'infinite':
        values[corner] = {'low outlier': -32768, 'high outlier': 32767, 'infinite': np.inf}[kind]
    return values, lesion, kind


def draw_axes(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Columns of an affine in canonical axes, mm: a rotation times spacing, the same sheared as by
    a tilted gantry; how many voxels make a head as wide as high; and words."""
    finest = np.exp(rng.uniform(np.log(0.05), np.log(8)))
    spacing = finest * rng.uniform(1, 2.5, 3)
    shape = (28 * finest / spacing).round().astype(int)
    axis = rng.normal(size=3)
    turn = np.radians(rng.choice([0, 0, 5, 20]))
    x, y, z = axis / np.linalg.norm(axis) * np.sin(turn / 2)
    rotation = nibabel.quaternions.quat2mat([np.cos(turn / 2), x, y, z])
    tilt = np.radians(rng.choice([0, 0, 20, -15]))
    shear = np.eye(3)
    shear[1, 2] = np.tan(tilt)
    words = (f'spacing {spacing.round(3)}, turned {np.degrees(turn):.0f}°, '
             f'tilted {np.degrees(tilt):.0f}°')
    return rotation * spacing, rotation @ shear * spacing, shape, words


def set_transforms(rng: np.random.Generator, header: nibabel.Nifti1Header, rigid: np.ndarray,
                   sheared: np.ndarray) -> tuple[np.ndarray, str]:
    """Write affines of the file's axes into the header; the one that counts, and how."""
    how = str(rng.choice(['sform', 'sform and qform', 'sform, other qform', 'qform',
                          'zero sform, qform', 'NaN sform, qform', 'broken qform, sform']))
    qform = how.split(', ')[-1] == 'qform'
    affine = rigid if qform else sheared
    rows = {'z': np.zeros((4, 4)), 'N': np.full((4, 4), np.nan)}.get(how[0], affine)
    header['sform_code'] = 0 if how == 'qform' else rng.integers(1, 5)
    header['srow_x'], header['srow_y'], header['srow_z'] = rows[:3]
    header['pixdim'][1:4] = rng.uniform(0.5, 9, 3)  # of no meaning without a qform
    if 'and qform' in how:
        rigid = sheared  # as near as a qform can be
    if 'qform' in how:
        header['qform_code'] = rng.integers(1, 5)
        spacing = np.linalg.norm(rigid[:3, :3], axis=0)
        axes = rigid[:3, :3] / spacing
        sign = 1 if np.linalg.det(axes) > 0 else -1
        axes[:, 2] *= sign
        u, _, v = np.linalg.svd(axes)
        header['pixdim'][:4] = sign, *spacing
        header['quatern_b'], header['quatern_c'], header['quatern_d'] = mat2quat(u @ v)[1:]
        for name, value in zip('xyz', rigid[:3, 3], strict=True):
            header[f'qoffset_{name}'] = value
    if 'other' in how:
        header['pixdim'][1:4] *= 2
    if 'broken' in how:
        header['quatern_b'] = header['pixdim'][2] = np.nan
    return affine, how


def stored(rng: np.random.Generator, values: np.ndarray, header: nibabel.Nifti1Header
           ) -> np.ndarray:
    """The values as the header's type, scaled by its slope and intercept."""
    kind = header.get_data_dtype()
    finite = values[np.isfinite(values)]
    slope, inter = 1.0, 0.0
    if kind.kind == 'f':
        if rng.random() < 0.5:
            slope, inter = rng.choice([1e-6, 0.5, -2, 1e6]), rng.choice([0, 100])
    elif rng.random() < 0.5 or finite.min() < 0 or kind.itemsize == 1 or finite.std() < 50:
        limits = np.iinfo(kind)
        lowest = max(int(limits.min), -30000)
        steps = min(int(limits.max) - lowest, 60000)
        slope = (finite.max() - finite.min()) / steps * rng.choice([1, -1])
        inter = (finite.min() if slope > 0 else finite.max()) - slope * lowest
    header['scl_slope'], header['scl_inter'] = slope, inter
    if (slope, inter) == (1, 0):
        header['scl_slope'] = rng.choice([0, 1, np.nan])
    slope, inter = (float(header[name]) if name == 'scl_inter' or slope != 1 else slope
                    for name in ('scl_slope', 'scl_inter'))
    raw = (values - inter) / slope
    if kind.kind != 'f':
        limits = np.iinfo(kind)
        raw = np.array([min(max(int(round(value)), int(limits.min)), int(limits.max))
                        for value in raw.ravel().tolist()], object).reshape(raw.shape)
    return raw.astype(kind)


def spoil(rng: np.random.Generator, header: nibabel.Nifti1Header, how: str) -> None:
    """Make a sound header one that has to be refused, if it is the header that is wrong."""
    if how.startswith('spacing'):
        value = 1e30 if how == 'spacing 1e30' else np.nan
        header['sform_code'] = header['qform_code'] = 0
        header['pixdim'][int(rng.integers(1, 4))] = value
    elif how in ('complex', 'color'):
        header.set_data_dtype({'complex': np.complex64, 'color': 'RGB'}[how])


def encode(rng: np.random.Generator, header: nibabel.Nifti1Header, raw: np.ndarray,
           how: str) -> tuple[bytes, bool]:
    """The bytes of a file, and whether they are gzipped."""
    offset = header.single_vox_offset + 16 * int(rng.choice([0, 0, 1, 40]))
    header['vox_offset'] = offset
    data = header.binaryblock + bytes(offset - header.sizeof_hdr) + raw.tobytes('F')
    if how == 'text':
        data = b'no volume' * 100
    if how == 'short':
        data = data[:-int(rng.integers(1, 500))]
    if how not in ('checksum', 'cut gzip') and rng.random() < 0.5:
        return data, False
    data = bytearray(gzip.compress(data, 1))
    if how == 'checksum':
        data[-6] ^= 255
    return bytes(data[:-int(rng.integers(9, 200))] if how == 'cut gzip' else data), True


def make(rng: np.random.Generator, folder: Path, number: int) -> Volume:
    """Write a random volume somewhere below the folder."""
    how = str(rng.choice(list(REFUSED))) if rng.random() < 0.2 else ''
    rigid, sheared, size, words = draw_axes(rng)
    values, lesion, kind = draw_head(rng, size)
    order, signs = rng.permutation(3), rng.choice([-1, 1], 3)  # of the axes in the file
    values, lesion = (np.flip(array.transpose(order), np.flatnonzero(signs < 0))
                      for array in (values, lesion))
    origin = rng.uniform(-100, 100, 3)
    unit = int(rng.choice(list(MILLIMETERS)))
    rigid, sheared = (
        np.vstack([np.column_stack([columns[:, order] * signs, origin]) / MILLIMETERS[unit],
                   [0, 0, 0, 1]]) for columns in (rigid, sheared))
    second, big = rng.random(2) < (0.3, 0.2)
    header = (nibabel.Nifti2Header if second else nibabel.Nifti1Header)(
        endianness='>' if big else '<')
    header.set_data_shape(values.shape + {'four dimensions': (2,)}.get(
        how, ((), (1,), (1, 1))[rng.integers(3)]))
    shape = header.get_data_shape()
    fraction = kind not in ('plain', 'noise in air', 'high outlier')  # needs a type that holds it
    header.set_data_dtype(rng.choice(TYPES[-2:] if fraction else TYPES))
    if kind == 'low outlier' and rng.random() < 0.5:
        header.set_data_dtype('i2')
    if kind == 'high outlier':
        header.set_data_dtype('i4')
    affine, transforms = set_transforms(rng, header, rigid, sheared)
    header['xyzt_units'] = unit + int(rng.choice([0, 8, 16]))
    raw = stored(rng, values, header)
    spoil(rng, header, how)
    if how == 'four dimensions':
        raw = np.repeat(raw[..., None], 2, -1)
    data, gzipped = encode(rng, header, raw, how)
    ending = str(rng.choice(['.nii', '.nii.gz', '.NII.GZ']))
    name = f'{"deep/er/" * int(rng.integers(2))}v{number}{ending}'
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    description = (f'{kind}, {words}, axes {order} {signs}, unit {unit}, {transforms}, '
                   f'{header.get_data_dtype()}, NIfTI-{2 if second else 1}, '
                   f'{"" if gzipped else "not "}gzipped, {shape}, {how or "sound"}')
    if how:
        return Volume(name, description, None, REFUSED[how])
    columns = affine[:3, :3].astype(np.float64) * MILLIMETERS[unit]
    across, along = (columns[:, list(order).index(axis)] for axis in (0, 1))
    return Volume(name, description, Answer(
        lesion.reshape(shape), affine, abs(np.linalg.det(columns)) / 1000,
        np.linalg.norm(np.cross(across, along))), 'infinite' if kind == 'infinite' else '')


def complaints(volume: Volume, output: Path, rows: list[dict[str, str]], stderr: list[str]
               ) -> Iterator[str]:
    """What is wrong with what was made of a volume."""
    lines = [line for line in stderr if volume.name in line]
    if len(lines) != bool(volume.reason) or volume.reason not in ''.join(lines):
        yield f'on stderr: {lines}'
    path = output / volume.name
    mask = path.with_name(path.name[:path.name.lower().rindex('.nii')] + '.nii.gz')
    if volume.answer is None or not mask.exists():
        if mask.exists() or volume.answer is not None:
            yield 'no mask' if volume.answer else 'a mask, but it should be refused'
        return
    image, answer = nibabel.load(mask), volume.answer
    voxels = np.asarray(image.dataobj)
    if voxels.shape != answer.lesion.shape:
        yield f'shape {voxels.shape}'
    elif ((voxels != answer.lesion) & ~corners(voxels)).any():
        yield f'{np.count_nonzero(voxels != answer.lesion)} voxels are wrong'
    if not np.allclose(image.affine, answer.affine, rtol=1e-4,
                       atol=1e-4 * np.abs(answer.affine).max()):
        yield f'affine {image.affine.tolist()}, not {answer.affine.tolist()}'
    *slices, whole = [row for row in rows if row['file'] == volume.name]
    for column, size, of_rows in (('lesion_ml', answer.voxel_ml, [whole]),
                                  ('lesion_mm2', answer.pixel_mm2, slices)):
        for row in of_rows:
            expected = int(row['lesion_px']) * size
            if not abs(float(row[column]) - expected) <= 1e-3 * expected:
                yield f'{column} {row[column]}, not {expected:.6g}'
    if int(whole['lesion_px']) != voxels.sum() != sum(int(row['lesion_px']) for row in slices):
        yield f'{whole["lesion_px"]} px in the table, {voxels.sum()} in the mask'


def corners(array: np.ndarray) -> np.ndarray:
    """An array of that shape, true at the corners."""
    are_corners = np.zeros(array.shape, bool)
    are_corners[np.ix_(*([0, length - 1] for length in array.shape))] = True
    return are_corners


def hashes(folder: Path) -> dict[Path, str]:
    """Every file below a folder, with a hash of its content."""
    return {path: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob('*') if path.is_file()}


def run_folder(rng: np.random.Generator, root: Path, count: int) -> Iterator[tuple[str, str]]:
    """Predict a folder of random volumes; (volume, what is wrong) for each failure."""
    source, output = root / 'in', root / 'out'
    volumes = [make(rng, source, number) for number in range(count)]
    before, err = hashes(source), io.StringIO()
    predictor = BrightIsLesion(input=(str(source),), output=str(output), probability=True)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(err):
            code = predict.run(predictor.config, predictor)
    except BaseException:
        listing = '\n'.join(f'{volume.name}: {volume.description}' for volume in volumes)
        yield listing, traceback.format_exc()
        return
    printed = err.getvalue().replace('\r', '\n').replace('\x1b[A', '')  # of progress bars
    lines = [line for line in printed.splitlines() if line.strip() and '%|' not in line]
    if hashes(source) != before:
        yield str(source), 'inputs changed'
    if code != any(volume.answer is None for volume in volumes):
        yield str(source), f'exit code {code}'
    foreign = [line for line in lines if not line.startswith('left out')
               and not any(volume.name in line for volume in volumes)]
    if foreign:
        yield str(source), f'on stderr: {foreign}'
    rows = read_csv(output / 'predictions.csv')
    for volume in volumes:
        for complaint in complaints(volume, output, rows, lines):
            yield f'{volume.name}: {volume.description}', complaint


def run(count: int, seed: int, report: Callable[[str], object] = print) -> list[str]:
    """Try that many volumes; what failed."""
    failures = []
    for start in range(0, count, AT_A_TIME):
        with tempfile.TemporaryDirectory() as root:
            rng = np.random.default_rng((seed, start))
            for volume, complaint in run_folder(rng, Path(root), min(AT_A_TIME, count - start)):
                failures.append(f'folder {start}, {volume}: {complaint}')
                report(failures[-1])
    report(f'{count} volumes, {len(failures)} failures')
    return failures


if __name__ == '__main__':
    options = fuzz_options(__doc__)
    sys.exit(1 if run(options.count, options.seed) else 0)
