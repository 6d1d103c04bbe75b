"""NIfTI volumes of the head as axial images, and masks back as volumes.

An image is an axial slice in the usual view (anterior on top, the patient's right on the left),
cut to a square around the head and scaled to 8 bits by percentiles of the whole volume."""
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel
import numpy as np
from nibabel import orientations

from utils import UserError, find_files

SUFFIXES = ('.nii', '.nii.gz')
PERCENTILES = (0.5, 99.5)  # ours: of the head's voxels; they become black and white
BACKGROUND = 0.05  # ours: up to this share of the 99.5th percentile a voxel is background
MARGIN = 0.04  # ours: of the head's longer side, left free around it
LEAST_HEAD = 0.05  # ours: share of head in a slice's image; with less it is not segmented
MAX_VOXELS = 2 ** 30  # 4 GB as float32
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


def case_and_kind(path: Path) -> tuple[str, str] | None:
    """Case and kind, a modality or 'seg', of a file that is named as in BraTS; else None."""
    if not (match := FILE_NAME.fullmatch(stem(path))):
        return None
    word = match['kind'].lower()
    return match['case'], next((kind for kind, words in MODALITIES.items() if word in words), 'seg')


def find_volumes(folder: Path) -> list[Path]:
    """All volumes below a folder, sorted by path, as utils.find_files lists them."""
    return find_files(folder, SUFFIXES)


@dataclass(frozen=True)
class Volume:
    """A volume in canonical orientation: its axes point to the right, to the front, upwards."""

    path: Path
    source: nibabel.Nifti1Image  # as in the file
    values: np.ndarray  # X×Y×Z float32
    spacing: tuple[float, float, float]  # mm, of the canonical axes

    @property
    def slices(self) -> range:
        """Numbers of the axial slices, 0 at the bottom."""
        return range(self.values.shape[2])

    @cached_property
    def levels(self) -> tuple[float, float, float]:
        """Up to the first value a voxel is background; second and third become black and white."""
        lowest = float(self.values.min())
        highest = float(np.percentile(self.values, PERCENTILES[1]))
        if highest <= lowest:  # a head smaller than half a percent of the volume, or a constant
            highest = float(self.values.max())
        background = lowest + BACKGROUND * (highest - lowest)
        head = self.values[self.values > background]
        if not head.size:
            return background, lowest, lowest + 1
        black, white = np.percentile(head, PERCENTILES)
        return background, float(black), float(max(white, np.nextafter(black, np.inf)))

    @cached_property
    def head(self) -> np.ndarray:
        """X×Y×Z bool: what is not background."""
        return self.values > self.levels[0]

    def head_share(self, z: int) -> float:
        """Share of a slice's image that is head, 0 to 1."""
        return float(self.to_image(self.head[..., z]).mean())

    @cached_property
    def box(self) -> tuple[slice, slice]:
        """The square around the head, in voxels of X and Y; it may reach beyond the volume."""
        footprint = self.head.any(2)
        if not footprint.any():
            footprint = np.ones_like(footprint)
        ranges = [np.flatnonzero(footprint.any(1 - axis))[[0, -1]] + (0, 1) for axis in (0, 1)]
        spacing = self.spacing[:2]
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

    def image(self, z: int) -> np.ndarray:
        """A slice as an image, H×W uint8 of the box, a pixel a voxel; black beyond the volume."""
        _, black, white = self.levels
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
        """Write canonical values, X×Y×Z of any type, with the source's axes, affine and header."""
        file_axes = orientations.io_orientation(self.source.affine)
        to_file = orientations.ornt_transform(orientations.axcodes2ornt('RAS'), file_axes)
        oriented = orientations.apply_orientation(values, to_file).reshape(self.source.shape)
        header = self.source.header.copy()
        header.set_data_dtype(values.dtype)
        header.set_slope_inter(1, 0)
        header['cal_min'], header['cal_max'] = 0, 1
        nibabel.Nifti1Image(np.ascontiguousarray(oriented), None, header).to_filename(path)


def read(path: Path) -> Volume:
    """A NIfTI file of three dimensions, values that are not finite as 0; raises UserError."""
    try:
        source = nibabel.Nifti1Image.from_filename(path)
        shape = tuple(source.shape)
        if len([length for length in shape[3:] if length != 1]) or len(shape) < 3:
            raise ValueError(f'{len(shape)} dimensions, {"×".join(map(str, shape))}, but a volume '
                             'has three; save one volume of it on its own')
        if np.prod(shape, dtype=float) > MAX_VOXELS or not np.prod(shape, dtype=float):
            raise ValueError(f'{"×".join(map(str, shape))} voxels')
        if source.get_data_dtype().fields:
            raise ValueError('voxels of color')
        canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image(
            np.asanyarray(source.dataobj).reshape(shape[:3]), source.affine, source.header))
        values = np.nan_to_num(np.asarray(canonical.dataobj, np.float32), posinf=0, neginf=0)
        spacing = tuple(float(mm) for mm in canonical.header.get_zooms()[:3])
        if not all(np.isfinite(mm) and mm > 0 for mm in spacing):
            raise ValueError(f'a spacing of {spacing} mm')
    except Exception as error:  # nibabel, gzip and numpy raise many kinds for broken files
        raise UserError(f'{path}: cannot be read as a NIfTI volume '
                        f'({error or type(error).__name__}); repair or remove it') from error
    return Volume(path, source, values, spacing)
