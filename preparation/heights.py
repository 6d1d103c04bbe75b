"""Heights of axial slices in the head, and normal slices matched to the diseased ones in height:
else a classifier would tell the folders apart by height, not by disease.

A height is a number in [0, 1]: 0 at the lowest slice of the head, 1 at its highest."""
from collections.abc import Sequence

import numpy as np

from utils import area_under_curve

TOLERANCE = 0.03  # ours: of the head's height, by which matched slices differ
LEAST_MATCHED = 0.5  # ours: normal slices, of the diseased ones, for which tolerance is widened
BINS = 10  # of the histograms whose overlap is printed


def head_heights(areas: np.ndarray) -> np.ndarray:
    """The height of each slice, from areas of head in it, n ≥ 0: thin ends do not count."""
    inside = np.flatnonzero(areas > 0.1 * areas.max(initial=0))
    first, last = (inside[0], inside[-1]) if inside.size else (0, len(areas) - 1)
    return ((np.arange(len(areas)) - first) / max(1, last - first)).clip(0, 1)


def match(wanted: Sequence[float], offered: Sequence[float], rng: np.random.Generator) -> list[int]:
    """Numbers of those `offered` heights that match one of the `wanted` each, the earliest of all
    within the tolerance; this is doubled until there are LEAST_MATCHED of the wanted, or all."""
    offered, free = np.asarray(offered, float), np.ones(len(offered), bool)
    open_heights, taken, tolerance = list(rng.permutation(np.asarray(wanted, float))), [], TOLERANCE
    while True:
        unmatched = []
        for height in open_heights:
            near = free & (np.abs(offered - height) <= tolerance)
            if near.any():
                taken.append(int(near.argmax()))
                free[taken[-1]] = False
            else:
                unmatched.append(height)
        open_heights = unmatched
        if len(taken) >= LEAST_MATCHED * len(wanted) or not free.any() or tolerance > 1:
            return taken
        tolerance *= 2


def overlap(disease: Sequence[float], normal: Sequence[float]) -> float:
    """The shared part of both histograms of heights, 0 to 1."""
    limits = min(*disease, *normal), max(*disease, *normal)
    shares = [np.histogram(heights, BINS, limits)[0] / len(heights)
              for heights in (disease, normal)]
    return float(np.minimum(*shares).sum())


def separation(disease: Sequence[float], normal: Sequence[float]) -> float:
    """AUC, 0.5 to 1, of telling the folders apart by height or by its distance from the diseased
    slices' median, whichever does it better."""
    disease, normal = np.asarray(disease, float), np.asarray(normal, float)
    middle = np.median(disease)
    areas = (area_under_curve(disease, normal),
             area_under_curve(np.abs(disease - middle), np.abs(normal - middle)))
    return max(max(area, 1 - area) for area in areas)
