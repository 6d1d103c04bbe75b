"""Stage 0: the localizer, a classifier that learns from image labels alone where disease is.

It gives a logit for every place of an image. An image is as diseased as its most suspicious
places, pooled by log-sum-exp (multiple-instance learning); no place of a normal image is diseased.
Training images change in pose, color and sharpness, so that none of these can distinguish the
folders."""
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from config import Config
from inference.soft_masks import autocast, to_array
from networks import pool_logits
from reporting import visualize
from stages import augmentation, losses
from stages.base import Stage, StepResult
from stages.optim import make_optimizer, update
from utils import random_generator


class LocalizerStage(Stage):
    """Of several processes each computes the whole batch: batch normalization mixes its images."""

    loss_names = ('total', 'image_label', 'normal')
    progress_names = ('total',)
    batch_options = ()
    shards_batches = False
    watches_masks = False
    is_scored_without_labels = False  # that score is the localizer's own

    MEMORY = 0.98  # decay of running means
    UNSURE = 0.5  # image-label loss above which a warning is due; guessing has log 2

    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__(config, device)
        self.networks['localizer'].any_orientation.fill_(config.tta == 'flips')
        self.recent_loss = torch.full((), math.log(2), device=device)  # of image_label
        self.optimizers = {'localizer': make_optimizer(self.networks.values(), config, device)}

    @staticmethod
    def schedule(progress: float) -> float:
        """One cycle (Smith and Topin 2018): rises for three tenths of the run and falls for the
        others, along cosines."""
        if progress < 0.3:
            return 0.04 + 0.96 * (1 - math.cos(math.pi * progress / 0.3)) / 2
        return (1 + math.cos(math.pi * (progress - 0.3) / 0.7)) / 2

    @staticmethod
    def normal_ramp(progress: float) -> float:
        """How far places of normal images count: not at first, since logits pressed down from the
        start would vanish before they could distinguish the folders; in full from half the run."""
        return min(1, 2 * progress)

    def step(self, batch: dict[str, Tensor], iteration: int) -> StepResult:
        """See Stage.step."""
        config, localizer = self.config, self.networks['localizer']
        localizer.train()
        disease = len(batch['A'])
        image = self._augmented(torch.cat([batch['A'], batch['B']]), iteration)
        # of batch normalization: a pass whose step is skipped must leave nothing behind
        kept = [*localizer.buffers(), self.recent_loss]
        before = [tensor.clone() for tensor in kept]
        with autocast(config, self.device):
            logits = localizer(image)
        of_disease, of_normal = logits[:disease], logits[disease:]
        image_label = (losses.image_label(pool_logits(of_disease), True)
                       + losses.image_label(pool_logits(of_normal), False)) / 2
        normal = (config.localizer_normal_weight * self.normal_ramp(iteration / config.iteration)
                  * losses.normal_pixels(of_normal))
        total = image_label + normal
        skipped = update(self.optimizers['localizer'], total)
        self.recent_loss.lerp_(image_label.detach(), 1 - self.MEMORY)
        localizer.normal_logit.lerp_(of_normal.detach().float().median(), 1 - self.MEMORY)
        for tensor, old in zip(kept, before, strict=True):  # no `if`: it would wait for a GPU
            tensor.copy_(torch.where(skipped > 0, old, tensor))
        values = {'total': total, 'image_label': image_label, 'normal': normal}
        return StepResult({name: value.detach() for name, value in values.items()},
                          (of_disease.detach() > 0).float().mean(), skipped)

    def _augmented(self, image: Tensor, iteration: int) -> Tensor:
        config = self.config
        random = augmentation.BatchRandom(random_generator(config.seed, iteration, 1), len(image))
        if config.augment:
            image = augmentation.random_affine(image, random, config.rotate)
            jitter = (augmentation.contrast_jitter if config.contrast_jitter
                      else augmentation.color_jitter)
            image = jitter(image, random)
        if config.blur_jitter:
            image = augmentation.blur_jitter(image, random)
        return image.contiguous(memory_format=torch.channels_last)

    def visuals(self, image: Tensor, mask: Tensor | None = None) -> dict[str, np.ndarray]:
        output = self.mask_network.predict_mask(image)
        return {'image': visualize.from_tensor(image[0]),
                'heatmap': visualize.from_heatmap(to_array(output.heatmap[0, 0])),
                'mask': visualize.from_mask(to_array(output.mask[0, 0]))}

    def state(self) -> dict[str, Any]:
        return {'recent_loss': float(self.recent_loss)}

    def load_state(self, state: dict[str, Any]) -> None:
        self.recent_loss.fill_(state['recent_loss'])

    def final_warning(self) -> str:
        loss = float(self.recent_loss)
        if loss < self.UNSURE:
            return ''
        return (f'the localizer hardly distinguishes disease from normal images (loss {loss:.2f}; '
                f'guessing has {math.log(2):.2f}), so do not rely on its masks: look at the image '
                'grids, and try another --seed or a larger --iteration with --stage 0')
