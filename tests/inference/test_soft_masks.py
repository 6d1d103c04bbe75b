"""Test-time augmentation, and how the network of an earlier stage runs."""
from pathlib import Path

import torch
from torch import Tensor

from checkpoint import Checkpoint
from inference.soft_masks import average_over_flips, config_of_network
from networks import MaskPrediction


class CornerNetwork(torch.nn.Module):
    """Its mask is the image's upper left corner, plus the conditioning image's if there is one."""

    def predict_mask(self, image: Tensor, conditioning: Tensor | None = None) -> MaskPrediction:
        mask = torch.zeros(len(image), 1, *image.shape[2:])
        mask[:, 0, 0, 0] = sum(part[:, 0, 0, 0] for part in (image, conditioning)
                               if part is not None)
        return MaskPrediction(mask)


def test_flips_are_averaged_in_the_image_s_own_orientation():
    """Over four flips each corner counts a quarter, over two the upper ones a half."""
    network = CornerNetwork()
    image, conditioning = torch.rand(2, 3, 4, 6), torch.rand(2, 3, 4, 6)
    for inputs in ([image], [image, conditioning]):
        mask = network.predict_mask(*inputs).mask
        mean = average_over_flips(network, inputs, mask, 'flips')
        expected = torch.zeros_like(mask)
        for row in (0, -1):
            for column in (0, -1):
                expected[:, 0, row, column] = sum(part[:, 0, row, column] for part in inputs) / 4
        assert torch.allclose(mean, expected)
        mirrored = average_over_flips(network, inputs, mask, 'mirror')
        assert torch.allclose(mirrored[..., 0, :], 2 * expected[..., 0, :])
        assert not mirrored[..., 1:, :].any()
        assert torch.equal(average_over_flips(network, inputs, mask, 'none'), mask)


def test_a_network_of_an_earlier_stage_keeps_its_shapes(tiny_config):
    """Data and test-time augmentation are this run's; a localizer averages over views itself."""
    run = tiny_config(stage=2, recipe='ours', tta='flips', ch=8)
    for stage, tta in ((1, 'flips'), (0, 'none')):
        saved = {**tiny_config(stage=stage, ch=4, tta='mirror').saved_values()}
        config = config_of_network(Checkpoint(Path('best.pt'), {}, saved), run)
        assert (config.stage, config.tta, config.ch, config.size) == (stage, tta, 4, (32, 32))
        assert (config.dataset, config.data_root) == (run.dataset, run.data_root)
