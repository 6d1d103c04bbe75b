"""Arrays as images."""
import numpy as np
import torch

from helpers import disc
from reporting import visualize


def test_values_become_colors():
    image = visualize.from_tensor(torch.tensor([-2.0, 0.0, 1.0]).reshape(1, 1, 3))
    assert image.shape == (1, 3, 3) and image[0, :, 0].tolist() == [0, 128, 255]
    assert visualize.from_mask(np.array([[0, 0.5, 1]]))[0, :, 0].tolist() == [0, 128, 255]
    heatmap = visualize.from_heatmap(np.array([[-3.0, 5.0]]))
    assert heatmap[0, 0].argmax() == 2 and heatmap[0, 1].argmax() == 0  # blue low, red high
    assert visualize.from_heatmap(np.ones((1, 2))).std(axis=1).max() == 0


def test_the_segmentation_is_drawn_above_the_label():
    image = np.zeros((40, 40, 3), np.uint8)
    small, large = disc((40, 40), (20, 20), 8), disc((40, 40), (20, 20), 12)
    both = visualize.overlay(image, small, large)
    assert tuple(both[20, 12]) == visualize.SEGMENTATION_COLOR
    assert tuple(both[20, 8]) == visualize.LABEL_COLOR
    assert not image.any()
    np.testing.assert_array_equal(visualize.overlay(image, small, small),
                                  visualize.overlay(image, small, None))


def test_image_grid():
    images = [np.full((30, 20, 3), value, np.uint8) for value in (10, 20)]
    grid = visualize.image_grid({'image': images, 'mask': images}, size=64)
    assert grid.shape == (2 * 64, visualize.NAME_WIDTH + 2 * 64, 3)
    assert (grid[64:, visualize.NAME_WIDTH + 64:] == 20).all()
