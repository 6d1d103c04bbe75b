"""Augmentation of whole batches: what it changes, what it keeps, and on what it depends.

That of single images, the published one, is tested where images are read: tests/test_dataset.py.
"""
import pytest
import torch

from helpers import squares
from stages.augmentation import (
    BatchRandom,
    blur_jitter,
    color_jitter,
    contrast_jitter,
    random_affine,
)


def numbers(seed: int, count: int) -> BatchRandom:
    return BatchRandom(torch.Generator().manual_seed(seed), count)


def test_image_and_target_move_together():
    """An image that is its own mask stays so under the geometry; color moves it but little."""
    _, mask = squares(16)
    image, random = (mask * 2 - 1).repeat(1, 3, 1, 1), numbers(1, 16)
    moved, target = random_affine(torch.cat([image, mask], 1), random, 180).split([3, 1], 1)
    moved, target = color_jitter(moved, random), target.round()
    assert set(target.unique().tolist()) <= {0.0, 1.0} and -1 <= moved.min() <= moved.max() <= 1
    bright = (moved.mean(1, keepdim=True) > 0).float()
    assert (bright - target).abs().mean() < 0.03
    assert (target - mask).abs().mean() > 0.02  # and it did move


@pytest.mark.parametrize('change', [
    lambda image, random: random_affine(image, random, 180), color_jitter, contrast_jitter,
    blur_jitter], ids=['random_affine', 'color_jitter', 'contrast_jitter', 'blur_jitter'])
def test_it_depends_on_its_seed_alone_and_not_on_who_computes_it(change):
    image = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    once, again, other = (change(image, numbers(seed, 6)) for seed in (3, 3, 4))
    assert torch.equal(once, again) and not torch.equal(once, other)
    places = [1, 4, 5]  # as the second of two processes has them
    part = change(image[places], BatchRandom(torch.Generator().manual_seed(3), 6, places))
    assert torch.allclose(part, once[places], atol=1e-6)


def test_blurred_images_keep_range_and_mean():
    image = torch.rand(32, 3, 32, 32) * 2 - 1
    blurred = blur_jitter(image, numbers(1, 32))
    assert blurred.abs().max() <= 1
    assert 4 <= (blurred == image).all((1, 2, 3)).sum() <= 16  # three of ten stay
    assert (blurred.mean((1, 2, 3)) - image.mean((1, 2, 3))).abs().max() < 0.05
    assert blurred.std() < image.std()


def test_contrast_jitter_moves_lesions_towards_or_away_from_the_usual_color():
    image = torch.full((64, 3, 16, 16), 0.2)
    image[:, :, 4:8, 4:8] = -0.3
    changed = contrast_jitter(image, numbers(0, 64))
    assert -1 <= changed.min() and changed.max() <= 1
    contrast = (changed[:, :, 0, 0] - changed[:, :, 5, 5]) / 0.5
    assert torch.allclose(contrast, contrast[:, :1].expand(-1, 3), atol=1e-5)  # of all channels
    assert 0.4 <= contrast.min() < 0.5 and 1.2 < contrast.max() <= 1.3
    brightness = changed[:, :, 0, 0] - 0.2
    assert brightness.abs().max() <= 0.25 + 1e-6 and brightness.std(0).min() > 0.05
