"""Augmentation of whole batches. That of single images, the published one, is in test_dataset."""
import pytest
import torch

from helpers import squares
from stages import augmentation


def numbers(seed: int, count: int, *places: list[int]) -> augmentation.BatchRandom:
    return augmentation.BatchRandom(torch.Generator().manual_seed(seed), count, *places)


def test_image_and_target_move_together():
    """An image that is its own mask stays so under the geometry; color moves it but little."""
    _, mask = squares(16)
    image, random = (mask * 2 - 1).repeat(1, 3, 1, 1), numbers(1, 16)
    both = augmentation.random_affine(torch.cat([image, mask], 1), random, 180)
    moved, target = augmentation.color_jitter(both[:, :3], random), both[:, 3:].round()
    assert set(target.unique().tolist()) <= {0.0, 1.0} and -1 <= moved.min() <= moved.max() <= 1
    bright = (moved.mean(1, keepdim=True) > 0).float()
    assert (bright - target).abs().mean() < 0.03
    assert (target - mask).abs().mean() > 0.02  # and it did move


@pytest.mark.parametrize('name, more', [('random_affine', [180]), ('color_jitter', []),
                                        ('contrast_jitter', []), ('blur_jitter', [])])
def test_it_depends_on_its_seed_alone_and_not_on_who_computes_it(name, more):
    change = getattr(augmentation, name)
    image = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    once, again, other = (change(image, numbers(seed, 6), *more) for seed in (3, 3, 4))
    assert torch.equal(once, again) and not torch.equal(once, other)
    places = [1, 4, 5]  # as the second of two processes has them
    part = change(image[places], numbers(3, 6, places), *more)
    assert torch.allclose(part, once[places], atol=1e-6)


def test_blurred_images_keep_range_and_mean():
    image = torch.rand(32, 3, 32, 32) * 2 - 1
    blurred = augmentation.blur_jitter(image, numbers(1, 32))
    assert blurred.abs().max() <= 1
    assert 4 <= (blurred == image).all((1, 2, 3)).sum() <= 16  # three of ten stay
    assert (blurred.mean((1, 2, 3)) - image.mean((1, 2, 3))).abs().max() < 0.05
    assert blurred.std() < image.std()


def test_contrast_jitter_moves_lesions_towards_or_away_from_the_usual_color():
    image = torch.full((64, 3, 16, 16), 0.2)
    image[:, :, 4:8, 4:8] = -0.3
    changed = augmentation.contrast_jitter(image, numbers(0, 64))
    assert -1 <= changed.min() and changed.max() <= 1
    contrast = (changed[:, :, 0, 0] - changed[:, :, 5, 5]) / 0.5
    assert torch.allclose(contrast, contrast[:, :1].expand(-1, 3), atol=1e-5)  # of all channels
    assert 0.4 <= contrast.min() < 0.5 and 1.2 < contrast.max() <= 1.3
    brightness = changed[:, :, 0, 0] - 0.2
    assert brightness.abs().max() <= 0.25 + 1e-6 and brightness.std(0).min() > 0.05
