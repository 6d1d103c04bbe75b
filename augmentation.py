"""Random changes of whole batches that break shortcuts: place, pose, colour and sharpness.

Each changes a batch B×C×H×W; `rng` alone decides how. `places` say where in a larger batch of
`whole` pictures these are, so that each changes as it would there, whoever computes it.
"""
import math

import torch
import torch.nn.functional as F
from torch import Tensor


class Draws:
    """Random numbers for each picture of a batch."""

    def __init__(self, rng: torch.Generator, whole: int, places: list[int] | None = None):
        self.rng = rng
        self.whole = whole
        self.places = list(range(whole)) if places is None else places

    def between(self, low: float, high: float, *shape: int) -> Tensor:
        """B×shape numbers in [low, high)."""
        drawn = torch.rand((self.whole, *shape), generator=self.rng)[self.places]
        return low + (high - low) * drawn


def change_pose(parts: Tensor, draws: Draws, turn: float) -> Tensor:
    """Mirrored left to right with probability ½, turned by up to ±`turn` degrees, zoomed 0.8 to
    1.25, shifted to 10 %.

    `parts` B×C×H×W may hold a picture and maps that belong to it.
    """
    angle, zoom = draws.between(-1, 1) * math.radians(turn), draws.between(0.8, 1.25)
    mirror = torch.where(draws.between(0, 1) < 0.5, -1.0, 1.0)
    cosine, sine = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    shift = draws.between(-0.2, 0.2, 2)
    affine = torch.stack([
        torch.stack([cosine * mirror, -sine, shift[:, 0]], 1),
        torch.stack([sine * mirror, cosine, shift[:, 1]], 1)], 1).to(parts.device)
    grid = F.affine_grid(affine, list(parts.shape), align_corners=False)
    return F.grid_sample(parts, grid, padding_mode='reflection', align_corners=False)


def recolour(image: Tensor, draws: Draws) -> Tensor:
    """Contrast 0.75 to 1.3, black staying black, then brightness ±0.15, of pictures in [-1, 1]."""
    contrast, brightness = draws.between(0.75, 1.3, 1, 1, 1), draws.between(-0.15, 0.15, 1, 1, 1)
    return ((image + 1) * contrast.to(image.device) - 1
            + brightness.to(image.device)).clamp(-1, 1)


def fade(image: Tensor, draws: Draws) -> Tensor:
    """Contrast 0.4 to 1.3 about each picture's own median colour, then light ±0.1 in each channel and
    ±0.15 in all, of pictures in [-1, 1]: skin keeps its tone, lesions become paler or stronger."""
    usual = image.flatten(2).median(2).values[..., None, None]
    contrast = draws.between(0.4, 1.3, 1, 1, 1).to(image.device)
    light = (draws.between(-0.1, 0.1, image.shape[1], 1, 1)
             + draws.between(-0.15, 0.15, 1, 1, 1)).to(image.device)
    return (usual + contrast * (image - usual) + light).clamp(-1, 1)


def blur_some(image: Tensor, draws: Draws, share: float = 0.7, coarsest: float = 5) -> Tensor:
    """That share of the pictures as if taken with up to `coarsest` times fewer pixels, and noise
    up to 0.04 on them: how sharp a picture is says nothing of disease, but may tell the folders
    apart (normal crops that were enlarged, say)."""
    height, width = image.shape[-2:]
    chosen = (draws.between(0, 1) < share).tolist()
    factors = torch.exp(draws.between(0, math.log(coarsest))).tolist()
    levels = draws.between(0, 0.04).tolist()
    noise = draws.between(-math.sqrt(3), math.sqrt(3), *image.shape[1:])  # of unit variance
    blurred = []
    for picture, is_chosen, factor, level, of_picture in zip(image, chosen, factors, levels, noise):
        if is_chosen:
            small = F.interpolate(picture[None], size=(max(1, round(height / factor)),
                                                       max(1, round(width / factor))), mode='area')
            picture = F.interpolate(small, size=(height, width), mode='bicubic')[0]
            picture = (picture + level * of_picture.to(image.device)).clamp(-1, 1)
        blurred.append(picture)
    return torch.stack(blurred)
