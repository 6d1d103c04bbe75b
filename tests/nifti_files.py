"""NIfTI volumes of simple heads, stored in whatever orientation scanners choose."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

SHAPE = 30, 36, 20  # to the right, to the front, upwards
ROTATION = np.array([[np.cos(0.2), -np.sin(0.2), 0], [np.sin(0.2), np.cos(0.2), 0], [0, 0, 1]])

# cases as those of BraTS
CASE_SHAPE = 24, 28, 16
LESIONS = {5: 8, 6: 8, 7: 8, 8: 2}  # slice → side in voxels; slices 2 … 13 hold head
DISEASE_SLICES = {z for z, side in LESIONS.items() if side == 8}
NORMAL_SLICES = set(range(2, 14)) - set(LESIONS)


def head() -> np.ndarray:
    """A head in air, its right half brighter, with a spot at its front: float32 of SHAPE."""
    values = np.zeros(SHAPE, np.float32)
    values[4:26, 3:33, 2:18] = np.linspace(60, 120, 30)[:, None]
    values[15:26, 3:33, 2:18] += 50
    values[18:23, 26:32, 8:13] = 400
    return values


def store(path: Path, values: np.ndarray, order: Sequence[int] = (0, 1, 2),
          signs: Sequence[int] = (1, 1, 1), spacing: Sequence[float] = (1, 2, 3),
          oblique: bool = False) -> Path:
    """Write canonical values (to the right, to the front, upwards) as a scanner with other axes
    would: `order` of the axes in the file, `signs` of their directions. Returns `path`."""
    affine = np.eye(4)
    affine[:3, :3] = (ROTATION if oblique else np.eye(3)) @ np.diag(spacing)
    affine[:3, 3] = -20, 7, 3
    orientation = np.array([(order.index(axis), signs[order.index(axis)]) for axis in range(3)])
    nibabel.save(nibabel.Nifti1Image(values, affine).as_reoriented(orientation), path)
    return path


def store_case(folder: Path, name: str, slices: dict[int, int] = LESIONS, ending: str = '.nii.gz',
               seg: str = '_seg', kinds: Sequence[str] = ('_flair',), **how: Any) -> None:
    """Volumes of a patient, one for each of `kinds`, and their segmentation unless `seg` is ''."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, kind in enumerate(kinds):
        values = np.zeros(CASE_SHAPE, np.float32)
        values[3:21, 3:25, 2:14] = np.random.default_rng(seed).uniform(60, 120, (18, 22, 12))
        store(folder / f'{name}{kind}{ending}', values, **how)
    if seg:
        lesion = np.zeros(CASE_SHAPE, np.float32)
        for z, side in slices.items():
            lesion[6:6 + side, 8:8 + side, z] = 4  # the classes of BraTS are 1, 2 and 4
        store(folder / f'{name}{seg}{ending}', lesion, **how)
