"""Test-time augmentation."""
import torch
from torch import Tensor

from inference.soft_masks import average_over_flips
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
