"""The score without labels."""
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from inference.model_selection import LabelFreeScore


class BrightIsDisease(torch.nn.Module):
    """A localizer whose logits are high wherever an image is bright."""

    def logits_over_views(self, image: Tensor) -> Tensor:
        return 8 * torch.nn.functional.avg_pool2d(image.mean(1, keepdim=True), 4)


def test_the_label_free_score_prefers_the_lesion_itself(tmp_path):
    """The right segmentation beats too small, too large, elsewhere, nothing and everything."""
    rng = np.random.default_rng(0)
    lesion = np.zeros((64, 64), bool)
    lesion[20:36, 24:44] = True
    image = rng.normal(50, 5, (64, 64, 3))
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(tmp_path / 'normal.png')
    image[lesion] += 170
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(tmp_path / 'disease.png')
    score = LabelFreeScore(BrightIsDisease(), (64, 64), torch.device('cpu'))
    score.learn_normal([tmp_path / 'normal.png'])
    large = lesion.copy()
    large[12:44, 16:52] = True
    segmentations = {'small': lesion & (np.arange(64)[:, None] < 26),
                     'elsewhere': np.roll(lesion, 24, 0), 'none': np.zeros_like(lesion),
                     'all': np.ones_like(lesion), 'large': large, 'right': lesion}
    scores = {name: score(tmp_path / 'disease.png', segmentation)
              for name, segmentation in segmentations.items()}
    assert max(scores, key=scores.get) == 'right' and scores['right'] > 80
    assert scores['none'] == pytest.approx(0, abs=0.5) and scores['all'] < 5
