"""Dense conditional random field over one image: pixels of similar color share a label. Arrays
in, arrays out: soft masks are H×W float in [0, 1], images H×W×3 uint8."""
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy import sparse


class PermutohedralLattice:
    """Gaussian filtering among n points in d dimensions (Adams et al. 2010), by sparse matrices.
    `filter` takes n×k values v and gives about Σ_j exp(−|f_i − f_j|²/2) v_j up to a constant: each
    point spreads its value over the d + 1 corners of its simplex (splat), values are blurred along
    the lattice's d + 1 directions, and points collect from their corners (slice, as transpose)."""

    def __init__(self, features: np.ndarray) -> None:
        """`features` n×d, in units of the Gaussian's standard deviation."""
        from scipy import sparse  # here, since most rules need no CRF
        points, dims = features.shape
        # onto the plane Σ x = 0 in d + 1 dimensions, so that the blur has variance 1
        axes = np.arange(1, dims + 1)
        spread = np.sqrt(2 / 3) * (dims + 1) / np.sqrt(axes * (axes + 1))
        basis = np.tril(np.ones((dims, dims + 1))).T.copy()
        basis[axes, axes - 1] = -axes
        # (einsum: threads of a matrix library would only slow each other down here)
        elevated = np.einsum('nd,ed->ne', features * spread, basis.astype(np.float32))
        # the nearest lattice point whose coordinates are multiples of d + 1 …
        rounded = np.rint(elevated / (dims + 1)).astype(np.int64)
        origin = rounded * (dims + 1)
        excess = rounded.sum(1, keepdims=True)
        # … and the order of the differences, which identifies the simplex around the point
        difference = elevated - origin
        order = np.argsort(-difference, axis=1, kind='stable')
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.arange(dims + 1)[None], axis=1)
        rank += excess
        wrapped = (rank < 0).astype(np.int64) - (rank > dims)
        rank += wrapped * (dims + 1)
        origin += wrapped * (dims + 1)
        # barycentric weights of the simplex's d + 1 corners
        position = dims - rank
        difference = (elevated - origin) / (dims + 1)
        weights = np.zeros((points, dims + 2))
        rows = np.arange(points)[:, None]
        weights[rows, position] += difference
        weights[rows, position + 1] -= difference
        weights[:, 0] += 1 + weights[:, dims + 1]
        # a corner's coordinates as one number; room for steps of the blur keeps it unambiguous
        low, high = origin.min(0) - 2 * (dims + 1), origin.max(0) + 2 * (dims + 1)
        strides = np.cumprod([1, *(high - low + 1)[:dims - 1]])
        # the last coordinate follows from the others: they sum to 0
        base = (origin[:, :dims] - low[:dims]) @ strides
        corner_codes = np.empty((points, dims + 1), np.int64)
        for corner in range(dims + 1):
            step = np.where(rank[:, :dims] <= dims - corner, corner, corner - (dims + 1))
            corner_codes[:, corner] = base + step @ strides
        codes, numbers = np.unique(corner_codes, return_inverse=True)
        self.slice = sparse.csr_matrix(
            (weights[:, :dims + 1].astype(np.float32).ravel(), numbers.ravel(),
             np.arange(0, points * (dims + 1) + 1, dims + 1)), shape=(points, len(codes)))
        self.splat = self.slice.T.tocsr()
        self.blurs = [self._blur(codes, axis, dims, strides) for axis in range(dims + 1)]
        self.factor = np.float32(1 / (1 + 2.0 ** -dims))

    @staticmethod
    def _blur(codes: np.ndarray, axis: int, dims: int, strides: np.ndarray) -> 'sparse.csr_matrix':
        """½ v(p − s) + v(p) + ½ v(p + s), s the lattice's step along an axis."""
        from scipy import sparse
        step = np.full(dims + 1, -1)
        step[axis] = dims
        offset = step[:dims] @ strides
        blur = sparse.identity(len(codes), np.float32, 'csr')
        for sign in (-1, 1):
            neighbors = np.searchsorted(codes, codes + sign * offset).clip(max=len(codes) - 1)
            exists = np.flatnonzero(codes[neighbors] == codes + sign * offset)
            blur = blur + sparse.csr_matrix(
                (np.full(len(exists), 0.5, np.float32), (exists, neighbors[exists])), blur.shape)
        return blur

    def filter(self, values: np.ndarray) -> np.ndarray:
        """Values n×k filtered, n×k."""
        values = self.splat @ values
        for blur in self.blurs:
            values = blur @ values
        return self.slice @ values * self.factor


class DenseCRF:
    """Fully connected CRF of two labels over one image (Krähenbühl and Koltun 2011). Kernels as
    published, each normalized symmetrically. The lattices belong to the image, so one object serves
    any number of masks. In an image of a single color, without edges, the larger label wins."""

    GAUSSIAN_SIGMA, GAUSSIAN_WEIGHT = 3, 3  # px
    BILATERAL_SIGMA, COLOR_SIGMA, BILATERAL_WEIGHT = 80, 13, 10  # px, 8-bit levels
    STEPS = 10

    def __init__(self, image: np.ndarray) -> None:
        """`image` H×W×3 uint8."""
        height, width = image.shape[:2]
        rows, columns = np.mgrid[:height, :width].reshape(2, -1).astype(np.float32)
        positions = np.stack([columns, rows], 1)
        colors = image.reshape(-1, 3).astype(np.float32)
        self.kernels = []
        with_color = np.hstack([positions / self.BILATERAL_SIGMA, colors / self.COLOR_SIGMA])
        for weight, features in ((self.GAUSSIAN_WEIGHT, positions / self.GAUSSIAN_SIGMA),
                                 (self.BILATERAL_WEIGHT, with_color)):
            lattice = PermutohedralLattice(features)
            row_sums = lattice.filter(np.ones((height * width, 1), np.float32))
            self.kernels.append((weight, lattice, 1 / np.sqrt(row_sums + 1e-20)))

    def infer(self, soft_mask: np.ndarray, exponents: Sequence[float] = (1,)) -> np.ndarray:
        """Lesion probabilities T×H×W after STEPS mean-field steps, one for each exponent t.
        `soft_mask` H×W in [0, 1] is the lesion's unary potential, (1 − mask)^t the background's,
        before both are normalized to probabilities of at least 1e-5."""
        lesion = np.asarray(soft_mask, np.float32).reshape(-1, 1)
        background = (1 - lesion) ** np.asarray(exponents, np.float32)
        total = np.maximum(lesion + background, 1e-20)
        # two labels: their unary potentials reduce to one log-odds
        unary_log_odds = (np.log(np.clip(lesion / total, 1e-5, 1))
                          - np.log(np.clip(background / total, 1e-5, 1)))
        # Potts compatibility: the message to a label is weight · (kernel · its probability q); the
        # difference of the two labels' messages is linear in 2·q − 1
        probability = 1 / (1 + np.exp(-unary_log_odds))
        for _ in range(self.STEPS):
            difference, log_odds = 2 * probability - 1, unary_log_odds
            for weight, lattice, norm in self.kernels:
                log_odds = log_odds + weight * norm * lattice.filter(norm * difference)
            probability = 1 / (1 + np.exp(-log_odds))
        return probability.T.reshape(-1, *soft_mask.shape)
