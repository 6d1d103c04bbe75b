"""NIfTI volumes of the head as the axial pictures that networks see, and masks back as volumes.

A picture is an axial slice in the usual view (anterior on top, the patient's right on the left),
cut to a square around the head and scaled to 8 bits by percentiles of the whole volume.
"""
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel
import numpy as np
from nibabel import orientations

from utils import UserError

SUFFIXES = ('.nii', '.nii.gz')
PERCENTILES = (0.5, 99.5)  # ours: of the head's voxels, they become black and white
BACKGROUND = 0.05  # ours: up to this share of the 99.5th percentile a voxel is background
MARGIN = 0.04  # ours: of the head's longer side, left free around it
LEAST_HEAD = 0.05  # ours: share of a slice's picture; below, the slice is not looked at
MOST_VOXELS = 2 ** 30  # 4 GB as float32
MODALITIES = {'flair': ('flair', 't2f'), 't1': ('t1', 't1n'), 't1ce': ('t1ce', 't1c', 't1gd'),
              't2': ('t2', 't2w')}  # in BraTS's names: up to 2021, and since
_SCAN = re.compile(r'(?P<case>.+)[_-](?P<kind>flair|t2f|t1|t1n|t1ce|t1c|t1gd|t2|t2w|seg|segm)', re.I)


def is_volume(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def stem(path: Path) -> str:
    """The file's name without `.nii` or `.nii.gz`."""
    return path.name[:-len(next(end for end in reversed(SUFFIXES)
                                if path.name.lower().endswith(end)))]


def case_and_kind(path: Path) -> tuple[str, str] | None:
    """Of a file that is named as BraTS does its case, and a modality or 'seg'; else None."""
    named = _SCAN.fullmatch(stem(path))
    if not named:
        return None
    word = named['kind'].lower()
    return named['case'], next((kind for kind, words in MODALITIES.items() if word in words), 'seg')


def find(folder: Path) -> list[Path]:
    """All volumes below a folder, by path; hidden ones are passed over."""
    return sorted(path for path in folder.rglob('*') if is_volume(path) and path.is_file()
                  and not any(part.startswith('.') for part in path.relative_to(folder).parts))


@dataclass(frozen=True)
class Volume:
    """A volume brought to the canonical orientation: axes to the right, to the front, upwards."""

    path: Path
    source: nibabel.Nifti1Image  # as in the file
    values: np.ndarray  # X×Y×Z float32
    spacing: tuple[float, float, float]  # mm, of the canonical axes

    @property
    def slices(self) -> range:
        return range(self.values.shape[2])

    @cached_property
    def levels(self) -> tuple[float, float, float]:
        """Background up to here, black, white."""
        lowest = float(self.values.min())
        highest = float(np.percentile(self.values, PERCENTILES[1]))
        if highest <= lowest:  # a head smaller than half a percent of the volume, or nothing at all
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
        """Share of a slice's picture that is head, 0 to 1."""
        return float(self.head[..., z][self._inside].sum()) / self._pixels

    @cached_property
    def box(self) -> tuple[slice, slice]:
        """The square around the head, in voxels of X and Y; it may reach beyond the volume."""
        shadow = self.head.any(2)
        if not shadow.any():
            shadow = np.ones_like(shadow)
        ranges = [np.flatnonzero(shadow.any(1 - axis))[[0, -1]] + (0, 1) for axis in (0, 1)]
        side = max((high - low) * mm for (low, high), mm in zip(ranges, self.spacing))
        side *= 1 + 2 * MARGIN
        box = []
        for (low, high), mm in zip(ranges, self.spacing):
            voxels = max(1, round(side / mm))
            start = (low + high - voxels) // 2
            box.append(slice(int(start), int(start) + voxels))
        return tuple(box)

    @property
    def _inside(self) -> tuple[slice, slice]:
        """The part of the box that lies in the volume."""
        return tuple(slice(max(part.start, 0), min(part.stop, length))
                     for part, length in zip(self.box, self.values.shape))

    @property
    def _pixels(self) -> int:
        return np.prod([part.stop - part.start for part in self.box])

    def picture(self, z: int) -> np.ndarray:
        """A slice as a picture H×W uint8 of the box, a pixel a voxel; black beyond the volume."""
        _, black, white = self.levels
        scaled = np.clip((self.values[..., z] - black) / (white - black), 0, 1)
        scaled[~self.head[..., z]] = 0
        return self.to_picture(np.rint(scaled * 255).astype(np.uint8))

    def to_picture(self, plane: np.ndarray) -> np.ndarray:
        """A plane X×Y, cut to the box, as it is looked at: H×W of the same type."""
        cut = np.zeros([part.stop - part.start for part in self.box], plane.dtype)
        place = tuple(slice(inside.start - part.start, inside.stop - part.start)
                      for inside, part in zip(self._inside, self.box))
        cut[place] = plane[self._inside]
        return np.ascontiguousarray(cut[::-1, ::-1].T)

    def to_plane(self, picture: np.ndarray) -> np.ndarray:
        """The reverse of `to_picture`: a picture H×W of the box as a plane X×Y, 0 around it."""
        plane = np.zeros(self.values.shape[:2], picture.dtype)
        place = tuple(slice(inside.start - part.start, inside.stop - part.start)
                      for inside, part in zip(self._inside, self.box))
        plane[self._inside] = picture.T[::-1, ::-1][place]
        return plane

    def write(self, values: np.ndarray, path: Path) -> None:
        """Canonical values X×Y×Z of any type as a file with the source's axes, affine and header."""
        own = orientations.io_orientation(self.source.affine)
        back = orientations.ornt_transform(orientations.axcodes2ornt('RAS'), own)
        turned = orientations.apply_orientation(values, back).reshape(self.source.shape)
        header = self.source.header.copy()
        header.set_data_dtype(values.dtype)
        header.set_slope_inter(1, 0)
        header['cal_min'], header['cal_max'] = 0, 1
        nibabel.Nifti1Image(np.ascontiguousarray(turned), None, header).to_filename(path)


def read(path: Path) -> Volume:
    """A NIfTI file of three dimensions; raises UserError with the file's name."""
    try:
        source = nibabel.Nifti1Image.from_filename(path)
        shape = tuple(source.shape)
        if len([length for length in shape[3:] if length != 1]) or len(shape) < 3:
            raise ValueError(f'{len(shape)} dimensions, {"×".join(map(str, shape))}, but a volume has three; '
                             'save the one that is meant on its own')
        if np.prod(shape, dtype=float) > MOST_VOXELS or not np.prod(shape, dtype=float):
            raise ValueError(f'{"×".join(map(str, shape))} voxels')
        if source.get_data_dtype().fields:
            raise ValueError('voxels of colour')
        canonical = nibabel.as_closest_canonical(
            nibabel.Nifti1Image(np.asanyarray(source.dataobj).reshape(shape[:3]), source.affine,
                                source.header))
        values = np.nan_to_num(np.asarray(canonical.dataobj, np.float32), posinf=0, neginf=0)
        spacing = tuple(float(mm) for mm in canonical.header.get_zooms()[:3])
        if not all(np.isfinite(mm) and mm > 0 for mm in spacing):
            raise ValueError(f'a spacing of {spacing} mm')
    except Exception as error:  # nibabel, gzip and numpy raise many kinds for broken files
        raise UserError(f'{path}: cannot be read as a NIfTI volume ({error or type(error).__name__}); '
                        'mend or remove it') from error
    return Volume(path, source, values, spacing)
