"""Stage 2: a student learns lesion masks from a teacher (teacher–student self-training).

The pseudo-labels are made of the teacher's soft masks, those of the stage before. The training has
rounds (noisy student: Xie et al. 2020): in each a new student sees strongly augmented images, and
its exponential moving average (`ema`; mean teacher: Tarvainen and Valpola 2017) becomes the
`target` network, which makes the pseudo-labels of the next round on plain images. A new student has
not learned by heart what the last one was taught wrongly. Normal images teach an empty mask.
"""
import hashlib
import math

import numpy as np
import torch
from torch import Tensor

from config import STUDENT_NETWORKS, Config
from inference.soft_masks import autocast, average_over_flips, to_array
from networks import build_network
from reporting import visualize
from runtime import distributed
from stages import losses
from stages.augmentation import BatchRandom, color_jitter, contrast_jitter, random_affine
from stages.base import Stage, StepResult
from stages.optim import make_optimizer, update
from stages.pseudo_labels import pseudo_labels
from utils import random_generator


class StudentStage(Stage):
    """The student, its moving average, the target network, and one optimizer."""

    loss_names = ('total', 'cross_entropy', 'dice', 'normal')
    progress_names = ('total',)
    batch_options = ('batch_size', 'normal_batch')

    WARM_UP = 0.08  # of a round, in which the learning rate rises

    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__(config, device)
        self._copy_student()
        self.labels = {}  # pseudo-labels of this round, packed, by a digest of mask and image
        self.ddp = distributed.wrap_ddp(self.networks['student'])
        self.optimizers = {'student': make_optimizer([self.networks['student']], config, device)}

    def _copy_student(self) -> None:
        for name in STUDENT_NETWORKS[1:]:
            self.networks[name].load_state_dict(self.networks['student'].state_dict())
            self.networks[name].requires_grad_(False)

    def start(self) -> None:
        """A pretrained encoder starts with its weights."""
        if self.config.encoder != 'none':
            self.networks['student'].encoder.load_pretrained(self.config)
            self._copy_student()

    def schedule(self, progress: float) -> float:
        """In each round the rate rises linearly for WARM_UP and falls to 0 along a cosine."""
        part = progress * self.config.rounds % 1
        return min(1, (part + 0.01) / self.WARM_UP) * (1 + math.cos(math.pi * part)) / 2

    # ----------------------------------------------------------------------------------- rounds

    def round_of(self, iteration: int) -> int:
        """The round, counted from 0, that an iteration belongs to."""
        return iteration * self.config.rounds // self.config.iteration

    def first_of_round(self, number: int) -> int:
        """The first iteration of a round."""
        return -(-number * self.config.iteration // self.config.rounds)

    def _start_round(self, number: int) -> None:
        """The student of the round before becomes the teacher, and a new one begins."""
        networks = self.networks
        networks['target'].load_state_dict(networks['ema'].state_dict())
        with torch.random.fork_rng(devices=[]):  # the same weights in all processes
            torch.manual_seed(self.config.seed + number)
            new = build_network('student', self.config)
        if self.config.encoder != 'none':
            new.encoder.load_pretrained(self.config)
        for name in ('student', 'ema'):
            networks[name].load_state_dict(new.state_dict())
        self.optimizers['student'].state.clear()
        self.labels.clear()

    # ------------------------------------------------------------------------------------- step

    def step(self, batch: dict[str, Tensor], iteration: int) -> StepResult:
        """See Stage.step."""
        config = self.config
        number = self.round_of(iteration)
        if number and iteration == self.first_of_round(number):
            self._start_round(number)
        self.networks.train()
        target = self.targets(batch, number)
        disease = len(target)
        empty = torch.zeros(len(batch['B']), *target.shape[1:], device=self.device)
        image = torch.cat([batch['A'], batch['B']])
        target = torch.cat([target, empty])
        if config.augment:
            image, target = self._augmented(image, target, disease, iteration)
        image = image.contiguous(memory_format=torch.channels_last)
        with autocast(config, self.device):
            logit = self.ddp(image)
        of_disease = logit[:disease], target[:disease]
        of_normal = logit[disease:], target[disease:]
        terms = {'cross_entropy': config.ce_weight * losses.cross_entropy(*of_disease),
                 'dice': config.dice_weight * losses.dice(*of_disease),
                 'normal': config.normal_weight * losses.cross_entropy(*of_normal)}
        total = sum(terms.values())
        skipped = update(self.optimizers['student'], total)
        self._update_average(iteration - self.first_of_round(number), 1 - skipped)
        mask_share = torch.sigmoid(logit[:disease].float()).mean()
        values = {'total': total, **terms}
        return StepResult({name: value.detach() for name, value in values.items()},
                          mask_share.detach(), skipped)

    def _augmented(self, image: Tensor, target: Tensor, disease: int,
                   iteration: int) -> tuple[Tensor, Tensor]:
        """Images and their targets changed alike; `disease` images come first."""
        random = BatchRandom(random_generator(self.config.seed, iteration),
                             distributed.world_size() * len(image),
                             places_in_whole_batch(disease, len(image) - disease))
        channels = image.shape[1]
        both = random_affine(torch.cat([image, target], 1), random, self.config.rotate)
        image, target = both[:, :channels], both[:, channels:]
        jitter = contrast_jitter if self.config.contrast_jitter else color_jitter
        return jitter(image, random), target.round()

    @torch.no_grad()
    def _update_average(self, iteration: int, taken: Tensor) -> None:
        """ema ← d·ema + (1 − d)·student where the step was `taken` (1, else 0), `iteration` counted
        from the start of the round; d grows to ema_decay, so that the start is forgotten."""
        decay = min(self.config.ema_decay, (1 + iteration) / (10 + iteration))
        for mean, new in zip(self.networks['ema'].parameters(),
                             self.networks['student'].parameters(), strict=True):
            mean.lerp_(new, (1 - decay) * taken)

    # ---------------------------------------------------------------------------- pseudo-labels

    def targets(self, batch: dict[str, Tensor], number: int) -> Tensor:
        """Pseudo-labels of the disease images in this round, B×1×H×W of 0 and 1. They are kept,
        since refining an outline takes longer than an iteration of the network."""
        digests = [hashlib.sha256(mask.tobytes() + image.tobytes()).digest() for mask, image
                   in zip(to_array(batch['mask']), to_array(batch['A']), strict=True)]
        if missing := [index for index, digest in enumerate(digests) if digest not in self.labels]:
            images = batch['A'][missing]
            masks = self._masks_of_target(images) if number else batch['mask'][missing]
            made = pseudo_labels(masks, images, self.rule_of(number), self.config)
            self.labels |= {digests[index]: np.packbits(label)
                            for index, label in zip(missing, made, strict=True)}
        height, width = batch['A'].shape[-2:]
        labels = [np.unpackbits(self.labels[digest], count=height * width) for digest in digests]
        return torch.from_numpy(np.stack(labels).reshape(-1, 1, height, width)).float().to(
            self.device, non_blocking=True)

    def rule_of(self, number: int) -> str:
        """The rule of a round's pseudo-labels. GrabCut again and again would enlarge lesions."""
        rule = self.config.default_rule
        return 'clean' if number and rule == 'grabcut' else rule

    @torch.no_grad()
    def _masks_of_target(self, images: Tensor) -> Tensor:
        """The target network's soft masks of plain images, B×1×H×W in [-1, 1]."""
        network = self.networks['target'].eval()
        with autocast(self.config, self.device):
            masks = average_over_flips(network, [images], network.predict_mask(images).mask,
                                       self.config.tta)
        return masks.float() * 2 - 1

    def visuals(self, image: Tensor, mask: Tensor | None = None) -> dict[str, np.ndarray]:
        output = self.mask_network.predict_mask(image)
        label, = pseudo_labels(mask, image, self.config.default_rule, self.config)
        return {'image': visualize.from_tensor(image[0]),
                'teacher_mask': visualize.from_tensor(mask[0]),
                'pseudo_label': visualize.from_mask(label.astype(np.float32)),
                'mask': visualize.from_mask(to_array(output.mask[0, 0]))}


def places_in_whole_batch(disease: int, normal: int) -> list[int]:
    """Where this process's images are in the batch of all processes: first all disease images, then
    all normal ones."""
    all_disease, all_normal = (distributed.world_size() * count for count in (disease, normal))
    return [*range(all_disease)[distributed.shard_slice(all_disease)],
            *range(all_disease, all_disease + all_normal)[distributed.shard_slice(all_normal)]]
