"""NIfTI volumes of the head as axial images, and masks back as volumes.

An image is an axial slice in the usual view (anterior on top, the patient's right on the left),
cut to a square around the head and scaled to 8 bits by percentiles of the whole volume."""
import gzip
import itertools
import logging
import re
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from inference.metrics import surface
from runtime.files import find_files
from utils import UserError, printable

if TYPE_CHECKING:
    import nibabel  # which the functions import that need it: images do not

logging.getLogger('nibabel.global').setLevel(logging.CRITICAL)  # it prints what it repairs,
# without the file's name

SUFFIXES = ('.nii', '.nii.gz')
PERCENTILES = (0.5, 99.5)  # ours: of the head's voxels; they become black and white
BACKGROUND = 0.05  # ours: a voxel is background up to this share of the way from low to high values
LEAST_FILL = 0.005  # ours: share of voxels at the border that have one value, or NaN: a fill value
EQUAL = 1e-5  # ours: of the way from low to high values; what differs by less has one value
FLAT = 0.1  # ours: share of voxels, at least, that are air beside a fill value; and that are head
AROUND = 0.6  # ours: share of dark voxels in a region's surface, from which they are air around it
MOSTLY_HEAD = 0.9  # ours: share of voxels that are head, above which something is wrong
STRAY = 0.01  # ours: what is smaller than this share of the head, seen from above, is no part of it
MARGIN = 0.04  # ours: of the head's longer side, left free around it
LEAST_HEAD = 0.05  # ours: share of head in a slice's image; with less it is not segmented
CORNER_TOLERANCE = 0.25  # ours: voxels by which corners of an image and its label may differ
MILLIMETERS = {1: 1000.0, 2: 1.0, 3: 0.001}  # by the header's code of its unit; unknown is mm
SPACINGS = (1e-7, 1e5)  # mm; beyond them areas and volumes are nonsense
FLOAT_RANGE = (1e-30, 1e30)  # the largest value of a volume in float32, with room to compute
MAX_VOXELS = 2 ** 28  # predict needs 11 bytes of memory a voxel, 3 GB
CHUNK = 2 ** 20  # voxels that are read at a time
MODALITIES = {'flair': ('flair', 't2f'), 't1': ('t1', 't1n'), 't1ce': ('t1ce', 't1c', 't1gd'),
              't2': ('t2', 't2w')}  # words in file names of BraTS: up to 2021, and since
FILE_NAME = re.compile(
    r'(?P<case>.+)[_-](?P<kind>flair|t2f|t1|t1n|t1ce|t1c|t1gd|t2|t2w|seg|segm)', re.I)


def is_volume(path: Path) -> bool:
    """Whether the file's name is that of a NIfTI volume."""
    return path.name.lower().endswith(SUFFIXES)


def stem(path: Path) -> str:
    """A file's name without its ending; `.nii.gz` is one."""
    return path.name[:-len('.nii.gz')] if path.name.lower().endswith('.nii.gz') else path.stem


def named(path: Path) -> Path:
    """The file, or the folder `X.nii/` that holds it (as copies of BraTS have it), unless only the
    file's own name is that of a volume of BraTS."""
    by_folder = FILE_NAME.fullmatch(stem(path.parent)) or not FILE_NAME.fullmatch(stem(path))
    return path.parent if is_volume(path.parent) and by_folder else path


def case_folder(path: Path) -> Path:
    """The folder that a volume shares with the others of its case: not one like `X.nii/`."""
    return path.parent.parent if is_volume(path.parent) else path.parent


def case_and_kind(path: Path) -> tuple[str, str] | None:
    """Case and kind, a modality or 'seg', of a file that is named as in BraTS; else None."""
    if not (match := FILE_NAME.fullmatch(stem(named(path)))):
        return None
    word = match['kind'].lower()
    return match['case'], next((kind for kind, words in MODALITIES.items() if word in words), 'seg')


def find_volumes(folder: Path) -> list[Path]:
    """All volumes below a folder, sorted by path, as runtime.files.find_files lists them."""
    return find_files(folder, SUFFIXES)


@dataclass(frozen=True)
class Volume:
    """A volume in canonical orientation: its axes point to the right, to the front, upwards."""

    path: Path
    header: 'nibabel.Nifti1Header'  # as in the file, but without transforms that are none
    values: np.ndarray  # X×Y×Z float32, NaN where the file has no finite value
    affine: np.ndarray  # 4×4: voxels to mm
    infinite: int  # voxels of the file

    @property
    def slices(self) -> range:
        """Numbers of the axial slices, 0 at the bottom."""
        return range(self.values.shape[2])

    @property
    def spacing(self) -> np.ndarray:
        """mm from voxel to voxel along X, Y and Z."""
        from nibabel import affines
        return affines.voxel_sizes(self.affine)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000

    @property
    def pixel_mm2(self) -> float:
        """Area of a pixel of an axial slice."""
        return float(np.linalg.norm(np.cross(self.affine[:3, 0], self.affine[:3, 1])))

    def warn(self) -> None:
        """Print to stderr what may be wrong with the volume, or with what is made of it."""
        texts = []
        if self.infinite:
            texts.append(f'{self.infinite} infinite values, taken for air')
        if not (self.header['sform_code'] or self.header['qform_code']):
            texts.append('the header has no orientation; taken for axial slices, feet first')
        if (share := self.head.mean()) > MOSTLY_HEAD:
            texts.append(f'{100 * share:.0f} % of the voxels are taken for head, hardly any for '
                         'air; brightness and crop may be wrong')
        for text in texts:
            tqdm.write(printable(f'{self.path}: {text}'), file=sys.stderr)

    @cached_property
    @np.errstate(over='ignore', invalid='ignore')
    def head(self) -> np.ndarray:
        """X×Y×Z bool: what is not air. Air is dark; or, in values that were normalized inside the
        head, one value among the others or NaN. Beside NaN or a fill value, what is dark among the
        other values is air as well."""
        values = self.values
        known = ~np.isnan(values)
        count, in_nan = np.count_nonzero(known), known.mean() <= 1 - FLAT
        in_order = values.transpose(order_of_memory(values))
        low, high = low_and_high(in_order[~np.isnan(in_order)])
        background = low + BACKGROUND * (high - low)
        tolerance = EQUAL * (high - low)
        fill = most_common(values[surface(known)], tolerance, background - low)
        del known
        head = values >= low if in_nan and not fill <= background else values > background
        if fill > background:  # in values that were normalized inside the head
            others = np.abs(values - fill) > tolerance
            if np.count_nonzero(others) <= count - FLAT * values.size:
                head = others & (values >= low_and_high(values[others])[0])
        if in_nan and np.count_nonzero(head) < FLAT * count:  # a head of one value
            head = values >= low
        return head if np.isnan(fill) and not in_nan else without_surroundings(values, head)

    @cached_property
    @np.errstate(over='ignore', invalid='ignore')
    def window(self) -> tuple[float, float]:
        """The values that become black and white."""
        if not self.head.any():
            return 0.0, 1.0
        order = order_of_memory(self.values)  # one for both: strides of single voxels say nothing
        inside = self.values.transpose(order)[self.head.transpose(order)]
        black, white = np.percentile(inside, PERCENTILES, overwrite_input=True)
        return float(black), float(max(white, np.nextafter(black, np.inf)))

    def head_share(self, z: int) -> float:
        """Share of a slice's image that is head, 0 to 1."""
        return float(self.to_image(self.head[..., z]).mean())

    @cached_property
    def box(self) -> tuple[slice, slice]:
        """The square around the head, in voxels of X and Y; it may reach beyond the volume."""
        _, parts = cv2.connectedComponents(self.head.any(2).astype(np.uint8), connectivity=4)
        areas = np.bincount(parts.ravel())[1:]
        footprint = np.isin(parts, 1 + np.flatnonzero(areas >= STRAY * areas.max(initial=0)))
        if not areas.size:
            footprint = np.ones_like(footprint)
        ranges = [np.flatnonzero(footprint.any(1 - axis))[[0, -1]] + (0, 1) for axis in (0, 1)]
        spacing = self.spacing[:2].tolist()
        side = max((high - low) * mm for (low, high), mm in zip(ranges, spacing, strict=True))
        box = []
        for (low, high), mm in zip(ranges, spacing, strict=True):
            voxels = max(1, round(side * (1 + 2 * MARGIN) / mm))
            start = int(low + high - voxels) // 2
            box.append(slice(start, start + voxels))
        return tuple(box)

    @cached_property
    def _overlap(self) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The part of the box that lies in the volume: in voxels of the volume, and of the box."""
        parts = [(part.start, max(part.start, 0), min(part.stop, length))
                 for part, length in zip(self.box, self.values.shape[:2], strict=True)]
        return (tuple(slice(low, high) for _, low, high in parts),
                tuple(slice(low - start, high - start) for start, low, high in parts))

    @np.errstate(over='ignore', invalid='ignore')
    def image(self, z: int) -> np.ndarray:
        """A slice as an image, H×W uint8 of the box, a pixel a voxel; black beyond the volume."""
        black, white = self.window
        scaled = np.clip((self.values[..., z] - black) / (white - black), 0, 1)
        scaled[~self.head[..., z]] = 0
        return self.to_image(np.rint(scaled * 255).astype(np.uint8))

    def to_image(self, plane: np.ndarray) -> np.ndarray:
        """A plane X×Y cut to the box, in the usual view: H×W of the same type."""
        in_volume, in_box = self._overlap
        cut = np.zeros([part.stop - part.start for part in self.box], plane.dtype)
        cut[in_box] = plane[in_volume]
        return np.ascontiguousarray(cut[::-1, ::-1].T)

    def to_plane(self, image: np.ndarray) -> np.ndarray:
        """The reverse of `to_image`: an image H×W of the box as a plane X×Y, 0 around it."""
        in_volume, in_box = self._overlap
        plane = np.zeros(self.values.shape[:2], image.dtype)
        plane[in_volume] = image.T[::-1, ::-1][in_box]
        return plane

    def write(self, values: np.ndarray, path: Path) -> None:
        """Write canonical values, X×Y×Z of any type, with the file's axes, affine and header."""
        from nibabel import orientations
        header = self.header.copy()
        file_axes = orientations.io_orientation(header.get_best_affine())
        to_file = orientations.ornt_transform(orientations.axcodes2ornt('RAS'), file_axes)
        oriented = orientations.apply_orientation(values, to_file).reshape(header.get_data_shape())
        header['vox_offset'] = 0  # behind the header
        header.set_data_dtype(values.dtype)
        header.set_slope_inter(1, 0)
        header['cal_min'], header['cal_max'] = 0, 1
        kind = next(kind for kind in kinds() if kind.header_class is type(header))
        kind(oriented, None, header).to_filename(path)


def kinds() -> tuple[type, ...]:
    """The classes of images that are read."""
    import nibabel
    return nibabel.Nifti1Image, nibabel.Nifti2Image


def read(path: Path) -> Volume:
    """A NIfTI file (1 or 2, gzipped or not, whatever its name says) of three dimensions; raises
    UserError."""
    from nibabel import orientations
    try:
        with open(path, 'rb') as file:
            gzipped = file.read(2) == b'\x1f\x8b'
        with (gzip.open(path) if gzipped else open(path, 'rb') as file,
              np.errstate(over='ignore', invalid='ignore')):
            header = read_header(file)
            shape = header.get_data_shape()[:3]
            affine = affine_of(header)
            check_spacing(affine, shape)
            values, infinite = read_values(file, header)
        axes = orientations.io_orientation(affine)
        return Volume(path, header, orientations.apply_orientation(values, axes),
                      affine @ orientations.inv_ornt_aff(axes, shape), infinite)
    except Exception as error:  # nibabel, gzip and numpy raise many kinds for broken files
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise UserError(f'{path}: cannot be read as a NIfTI volume ({reason}); repair or remove '
                        'it') from error


def read_header(file: BinaryIO) -> 'nibabel.Nifti1Header':
    """The header of a volume that can be read; raises ValueError for others."""
    headers = [kind.header_class for kind in kinds()]
    start = file.read(max(header.sizeof_hdr for header in headers))
    headers = [header for header in headers if header.may_contain_header(start)]
    if not headers:
        raise ValueError('no NIfTI header')
    # without its extensions, which are not for masks
    header = headers[0](start[:headers[0].sizeof_hdr], check=False)
    if not np.isfinite(offset := float(header['vox_offset'])) or offset < 0:
        raise ValueError(f'its header says that its voxels begin at byte {offset:g}')
    if not np.isfinite(header['scl_inter']) and np.isfinite(header['scl_slope']):
        header['scl_inter'] = 0
    spacing = np.abs(header['pixdim'][1:4])
    header = headers[0](header.binaryblock, header.endianness)  # which repairs, among others, a
    header['pixdim'][1:4] = spacing  # spacing of 0, of which only `affine_of` can tell
    if header['magic'] != header.single_magic:
        raise ValueError('its voxels are in an .img file; save both as one .nii file')
    header['vox_offset'] = header['vox_offset'] or header.single_vox_offset
    shape, kind = header.get_data_shape(), header.get_data_dtype()
    text = '×'.join(map(str, shape))
    if len(shape) < 3 or any(length != 1 for length in shape[3:]):
        raise ValueError(f'{len(shape)} dimensions, {text}, but a volume has three; save one '
                         'volume of it on its own')
    if min(shape) < 1 or np.prod(shape, dtype=float) > MAX_VOXELS:
        raise ValueError(f'{text} voxels; at most {MAX_VOXELS} in all')
    if kind.fields or kind.kind == 'c':
        raise ValueError('voxels of color' if kind.fields else 'complex numbers; save magnitudes')
    return header


def affine_of(header: 'nibabel.Nifti1Header') -> np.ndarray:
    """4×4 from voxels to mm: of the sform, else the qform, else the spacing alone. Codes of
    transforms that are none become 0, so that whoever reads a mask takes the same one."""
    from nibabel.spatialimages import HeaderDataError
    for name in ('sform', 'qform'):
        try:
            affine = getattr(header, f'get_{name}')()
        except (ValueError, HeaderDataError):  # a quaternion that is none
            affine = np.zeros((4, 4))
        if header[f'{name}_code'] and is_affine(affine):
            break
        header[f'{name}_code'] = 0
    unit = MILLIMETERS.get(int(header['xyzt_units']) & 7, 1.0)
    return np.diag([unit, unit, unit, 1]) @ header.get_best_affine()


def is_affine(affine: np.ndarray) -> bool:
    """Whether all is finite, and the three axes span space."""
    from nibabel import affines
    if not np.isfinite(affine).all():
        return False
    lengths = affines.voxel_sizes(affine)
    return bool(lengths.all()) and np.linalg.det(affine[:3, :3] / lengths) ** 2 > 1e-6


def check_spacing(affine: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raises ValueError where a slice's image would be absurdly large, or have no area."""
    from nibabel import affines, orientations
    spacing = affines.voxel_sizes(affine)
    text = '×'.join(f'{mm:.4g}' for mm in spacing)
    if not all(SPACINGS[0] < mm < SPACINGS[1] for mm in spacing):
        raise ValueError(f'a spacing of {text} mm')
    axes = orientations.io_orientation(affine)[:, 0]
    in_plane = [(spacing[axis], shape[axis]) for axis in range(3) if axes[axis] != 2]
    side = max(mm * length for mm, length in in_plane) * (1 + 2 * MARGIN)
    if np.prod([side / mm for mm, _ in in_plane]) > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f'a spacing of {text} mm, whose slices as square images are too large')


def read_values(file: BinaryIO, header: 'nibabel.Nifti1Header') -> tuple[np.ndarray, int]:
    """X×Y×Z float32 in the file's order, NaN where they are not finite, and how many of them are
    infinite; those beyond float32 are scaled to at most 1. Read in chunks, so that memory is
    bounded whatever their type."""
    shape, kind = header.get_data_shape()[:3], header.get_data_dtype()
    slope, inter = (number if number is not None else default for number, default
                    in zip(header.get_slope_inter(), (1, 0), strict=True))
    values, infinite = np.empty(np.prod(shape), np.float32), 0
    largest, factor = 0.0, 1.0
    file.seek(header.get_data_offset())
    for start in range(0, values.size, CHUNK):
        part = values[start:start + CHUNK]
        stored = file.read(part.size * kind.itemsize)
        if len(stored) < part.size * kind.itemsize:
            raise ValueError('shorter than its header says')
        scaled = np.frombuffer(stored, kind).astype(np.result_type(kind, np.float64), copy=True)
        scaled *= slope
        scaled += inter
        are_infinite = np.isinf(scaled)
        infinite += int(are_infinite.sum())
        scaled[are_infinite] = np.nan
        largest = max(largest, np.abs(scaled).max(initial=0, where=~np.isnan(scaled)))
        fits = not largest or FLOAT_RANGE[0] < largest < FLOAT_RANGE[1]
        within = 1.0 if fits else 1 / max(largest, 1e-300)
        if within != factor:
            values[:start] *= np.float32(within / factor)
            factor = within
        part[:] = scaled * factor
    while file.read(CHUNK):  # to the end, where gzip compares the checksum
        pass
    return values.reshape(shape, order='F'), infinite


def low_and_high(values: np.ndarray) -> tuple[float, float]:
    """Robust lowest and highest of values, which are changed; 0 and 0 of none."""
    if not values.size:
        return 0.0, 0.0
    highest = float(values.max())
    low, high = map(float, np.percentile(values, PERCENTILES, overwrite_input=True))
    return low, high if high > low else highest  # a head smaller than half a percent of the volume


def without_surroundings(values: np.ndarray, region: np.ndarray) -> np.ndarray:
    """A region, X×Y×Z bool, without what is dark and lies around the rest of it: noise in air, or
    another value of air, beside a fill value."""
    while region.any():
        low, high = low_and_high(values[region])
        bright = region & (values > low + BACKGROUND * (high - low))
        share = np.count_nonzero(bright) / np.count_nonzero(region)
        if not FLAT <= share <= 1 - FLAT or bright[surface(region)].mean() > 1 - AROUND:
            break
        region = bright
    return region


def most_common(values: np.ndarray, tolerance: float, near: float) -> float:
    """The value that most of these have, up to `tolerance`; NaN unless LEAST_FILL of all have it,
    and most of those that are `near` it: then it was filled in, and is no noise or tissue."""
    if not values.size:
        return np.nan
    values = np.sort(values, axis=None)
    count = np.searchsorted(values, values + tolerance, 'right') - np.arange(values.size)
    first = int(count.argmax())
    value = float(np.median(values[first:first + count[first]]))
    nearby = np.count_nonzero(np.abs(values - value) <= near)
    return value if count[first] >= max(LEAST_FILL * values.size, nearby / 2) else np.nan


def order_of_memory(array: np.ndarray) -> np.ndarray:
    """An array's axes sorted so that going through it is fast."""
    return np.argsort(np.abs(array.strides))[::-1]


def in_axes_of(volume: Volume, label: Volume) -> np.ndarray:
    """A label's values on the voxels of its volume, X×Y×Z; raises UserError where their grids are
    not the same, whatever order and direction of axes their files have."""
    from nibabel import affines, orientations
    to_volume = np.linalg.inv(volume.affine) @ label.affine
    axes = orientations.io_orientation(to_volume)
    values = orientations.apply_orientation(label.values, axes)
    if values.shape != volume.values.shape:
        voxels, others = ('×'.join(map(str, one.shape)) for one in (values, volume.values))
        raise UserError(f'{label.path}: {voxels} voxels, but {volume.path.name} has {others}')
    to_volume = to_volume @ orientations.inv_ornt_aff(axes, label.values.shape)
    corners = np.array(list(itertools.product(*((-0.5, n - 0.5) for n in values.shape))))
    distance = np.abs(affines.apply_affine(to_volume, corners) - corners).max()
    if not distance < CORNER_TOLERANCE:
        raise UserError(f'{label.path}: lies elsewhere in space than {volume.path.name} (corners '
                        f'are up to {distance:.3g} voxels apart); resample it to that volume')
    return values
