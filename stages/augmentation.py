"""Augmentation of all stages: the published one, of single images, and ours, of whole batches."""
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from dataset import resize

# ------------------------------------------------- label transfer: published (second generation)

CROP_MARGIN = 50  # px


def crop_source_size(size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) that crops of `size` are taken out of."""
    return size[0] + CROP_MARGIN, size[1] + CROP_MARGIN


def published_augmentation(image: Image.Image, size: tuple[int, int], rng: np.random.Generator,
                           is_mask: bool = False) -> Image.Image:
    """Both flips with probability ½, a crop of `size` out of size + 50, contrast times 0.9 to 1.1.
    A mask that has to move with its image goes through with an equal `rng`; its contrast stays."""
    image = resize(image, crop_source_size(size))
    if rng.random() < 0.5:
        image = transforms.hflip(image)
    if rng.random() < 0.5:
        image = transforms.vflip(image)
    top, left = rng.integers(0, CROP_MARGIN + 1, 2)
    image = transforms.crop(image, int(top), int(left), *size)
    return image if is_mask else transforms.adjust_contrast(image, rng.uniform(0.9, 1.1))


# ----------------------------------------------------------------- localizer and student: ours


class BatchRandom:
    """Random numbers for each image of a batch, from `rng` alone. `places` says where in a larger
    batch of `whole` images these are: each changes alike whichever process computes it."""

    def __init__(self, rng: torch.Generator, whole: int, places: list[int] | None = None) -> None:
        self.rng, self.whole = rng, whole
        self.places = list(range(whole)) if places is None else places

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """B×shape numbers in [low, high)."""
        numbers = torch.rand((self.whole, *shape), generator=self.rng)[self.places]
        return low + (high - low) * numbers


def random_affine(batch: Tensor, random: BatchRandom, degrees: float) -> Tensor:
    """B×C×H×W mirrored left to right with probability ½, rotated by up to ±`degrees`, zoomed 0.8 to
    1.25, shifted by up to 10 %. The channels may hold an image and masks that belong to it."""
    angle, zoom = random.uniform(-1, 1) * math.radians(degrees), random.uniform(0.8, 1.25)
    mirror = torch.where(random.uniform(0, 1) < 0.5, -1.0, 1.0)
    cosine, sine = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    shift = random.uniform(-0.2, 0.2, 2)
    affine = torch.stack([torch.stack([cosine * mirror, -sine, shift[:, 0]], 1),
                          torch.stack([sine * mirror, cosine, shift[:, 1]], 1)], 1)
    affine = affine.to(batch.device, non_blocking=True)
    grid = F.affine_grid(affine, list(batch.shape), align_corners=False)
    return F.grid_sample(batch, grid, padding_mode='reflection', align_corners=False)


def color_jitter(image: Tensor, random: BatchRandom) -> Tensor:
    """Contrast 0.75 to 1.3 about black, then brightness ±0.15, of images in [-1, 1]."""
    contrast = random.uniform(0.75, 1.3, 1, 1, 1).to(image.device, non_blocking=True)
    brightness = random.uniform(-0.15, 0.15, 1, 1, 1).to(image.device, non_blocking=True)
    return ((image + 1) * contrast - 1 + brightness).clamp(-1, 1)


def contrast_jitter(image: Tensor, random: BatchRandom) -> Tensor:
    """Contrast 0.4 to 1.3 about each image's own median color, then brightness ±0.1 in each channel
    and ±0.15 in all, of images in [-1, 1]: skin keeps its tone, lesions become paler or darker."""
    median = image.flatten(2).median(2).values[..., None, None]
    contrast = random.uniform(0.4, 1.3, 1, 1, 1).to(image.device, non_blocking=True)
    brightness = (random.uniform(-0.1, 0.1, image.shape[1], 1, 1)
                  + random.uniform(-0.15, 0.15, 1, 1, 1)).to(image.device, non_blocking=True)
    return (median + contrast * (image - median) + brightness).clamp(-1, 1)


def blur_jitter(image: Tensor, random: BatchRandom, probability: float = 0.7,
                strongest: float = 5) -> Tensor:
    """With that probability an image in [-1, 1] is blurred as if taken with up to `strongest` times
    fewer pixels, and gets noise of up to 0.04: sharpness says nothing about disease, but may
    distinguish the folders (normal images that were enlarged from crops, say)."""
    height, width = image.shape[-2:]
    chosen = (random.uniform(0, 1) < probability).tolist()
    factors = torch.exp(random.uniform(0, math.log(strongest))).tolist()
    levels = random.uniform(0, 0.04).tolist()
    noise = random.uniform(-math.sqrt(3), math.sqrt(3), *image.shape[1:])  # of unit variance
    blurred = []
    for single, is_chosen, factor, level, own_noise in zip(image, chosen, factors, levels, noise,
                                                           strict=True):
        if is_chosen:
            small_size = [max(1, round(side / factor)) for side in (height, width)]
            small = F.interpolate(single[None], size=small_size, mode='area')
            single = F.interpolate(small, size=(height, width), mode='bicubic')[0]
            single = (single + level * own_noise.to(image.device, non_blocking=True)).clamp(-1, 1)
        blurred.append(single)
    return torch.stack(blurred)
