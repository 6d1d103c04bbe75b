"""Stage 0: a locator learns where a picture looks diseased, from image labels alone.

It gives every place of a picture evidence of disease. A picture is as diseased as its most
suspicious places, pooled smoothly; of a normal picture no place is diseased. Shown pictures
change in pose, colour and sharpness, so that none of these can tell the folders apart.
"""
import math

import torch
from torch import Tensor

import losses
import pictures
import steps
from augmentation import Draws, blur_some, change_pose, fade, recolour
from masks import autocast, to_array
from networks import build_networks, make_ready
from settings import Settings
from utils import seeded


class Locating:
    """The locator, its optimiser, and one step on a batch.

    Of several processes each computes the whole batch: batch normalisation mixes its pictures.
    """

    LOSSES = ('total', 'image_label', 'normal')
    SHOWN = ('total',)
    LEVEL_MEMORY = 0.98  # share of the normal level that stays in an iteration

    def __init__(self, settings: Settings, device: torch.device):
        self.settings = settings
        self.device = device
        self.networks = make_ready(build_networks(settings), settings, device)
        self.networks['locator'].no_side_is_up.fill_(settings.no_side_is_up)
        self.recent_loss = torch.full((), math.log(2), device=device)  # of image_label: guessing
        self.optimizers = {'locator': torch.optim.AdamW(
            self.networks['locator'].parameters(), settings.lr,
            weight_decay=settings.weight_decay, fused=device.type in ('cpu', 'cuda'))}

    @property
    def mask_network(self):
        """The network that makes the masks of disease pictures."""
        return self.networks['locator']

    @staticmethod
    def schedule(progress: float) -> float:
        """The learning rate's share of --lr: one cycle (Smith and Topin 2018). It rises for three
        tenths of the run and falls for the others, along cosines."""
        if progress < 0.3:
            return 0.04 + 0.96 * (1 - math.cos(math.pi * progress / 0.3)) / 2
        return (1 + math.cos(math.pi * (progress - 0.3) / 0.7)) / 2

    @staticmethod
    def ramp(progress: float) -> float:
        """How far normal places count: not at first, in full from half of the run on. Pressed down
        from the start, evidence would vanish before any of it could tell the folders apart."""
        return min(1, 2 * progress)

    def step(self, batch: dict[str, Tensor], iteration: int) -> dict[str, Tensor]:
        """One iteration; the weighted losses by name, and the share of disease pictures' places
        with evidence of disease as `mask_share`. `batch` holds A and B, img_ch×H×W in [-1, 1]."""
        settings, locator = self.settings, self.networks['locator']
        locator.train()
        disease = len(batch['A'])
        image = torch.cat([batch['A'], batch['B']])
        draws = Draws(seeded((settings.seed, iteration, 1)), len(image))
        if settings.augment:
            image = change_pose(image, draws, settings.turn)
            image = fade(image, draws) if settings.fade else recolour(image, draws)
        if settings.blur:
            image = blur_some(image, draws)
        image = image.contiguous(memory_format=torch.channels_last)

        # of batch normalisation: a pass whose step is skipped must leave nothing behind
        statistics = {name: buffer.clone() for name, buffer in locator.named_buffers()}
        with autocast(settings, self.device):
            evidence = locator(image)
        of_disease, of_normal = evidence[:disease], evidence[disease:]
        terms = {'image_label': (losses.image_label(of_disease, True)
                                 + losses.image_label(of_normal, False)) / 2,
                 'normal': (settings.normal_weight * self.ramp(iteration / settings.iteration)
                            * losses.no_evidence(of_normal))}
        total = sum(terms.values())
        optimizer = self.optimizers['locator']
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        skipped = steps.take(optimizer, total)
        if skipped:
            locator.load_state_dict(statistics, strict=False)
        else:
            self.recent_loss.lerp_(terms['image_label'].detach(), 1 - self.LEVEL_MEMORY)
            locator.normal_level.lerp_(of_normal.detach().float().median(), 1 - self.LEVEL_MEMORY)
        terms['mask_share'] = (of_disease.detach() > 0).float().mean()
        return {name: value.detach()
                for name, value in {'total': total, **terms, 'skipped': skipped}.items()}

    def remark(self) -> str:
        """What a user should know of a finished run, if anything."""
        loss = float(self.recent_loss)
        if loss < 0.5:
            return ''
        return (f'the locator hardly tells disease from normal pictures (loss {loss:.2f}; guessing '
                f'has {math.log(2):.2f}), so do not rely on its masks: look at the sheets, and try '
                'another --seed or a larger --iteration with --stage 0')

    def sheet_column(self, image: Tensor, mask: Tensor | None = None) -> dict:
        """What a sheet shows of one picture 1×img_ch×H×W."""
        made = self.mask_network.predict_mask(image)
        return {'image': pictures.from_tensor(image[0]),
                'evidence': pictures.from_heatmap(to_array(made.heatmap[0, 0])),
                'location': pictures.from_mask(to_array(made.mask[0, 0]))}
