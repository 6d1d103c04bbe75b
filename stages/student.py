"""Stage 2: a student learns lesion masks from a teacher (teacher–student self-training).

The first pseudo-labels are made of the teacher's soft masks, those of the stages before. After a
warm-up the student's own moving average (`ema`; mean teacher: Tarvainen and Valpola 2017) makes
them: every `target_update_freq` iterations it is copied to the `target` network. The target network
sees the plain image, the student a strongly augmented one, and normal images teach an empty mask.
"""
import hashlib

import numpy as np
import torch
from torch import Tensor

from config import STUDENT_NETWORKS, Config
from inference import refinement
from inference.metrics import jaccard
from inference.postprocess import threshold, to_bytes
from inference.soft_masks import autocast, to_array
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

    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__(config, device)
        self._copy_student()
        self.first_labels = {}  # first pseudo-labels, packed, by a digest of mask and image
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

    # ------------------------------------------------------------------------------------- step

    def step(self, batch: dict[str, Tensor], iteration: int) -> StepResult:
        """See Stage.step."""
        config = self.config
        self.networks.train()
        target = self.targets(batch, iteration)
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
        if not skipped:
            self._update_average(iteration)
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
    def _update_average(self, iteration: int) -> None:
        """ema ← d·ema + (1 − d)·student; d grows to ema_decay, so that the start is forgotten.
        Then, when it is due, target ← ema."""
        config = self.config
        decay = min(config.ema_decay, (1 + iteration) / (10 + iteration))
        for mean, new in zip(self.networks['ema'].parameters(),
                             self.networks['student'].parameters(), strict=True):
            mean.lerp_(new, 1 - decay)
        since = iteration + 1 - self.first_update
        if config.target_update_freq and since >= 0 and since % config.target_update_freq == 0:
            self.networks['target'].load_state_dict(self.networks['ema'].state_dict())

    @property
    def first_update(self) -> int:
        """The iteration after which ema is first copied to the target network."""
        return self.config.warm_up or self.config.target_update_freq

    # ---------------------------------------------------------------------------- pseudo-labels

    @torch.no_grad()
    def targets(self, batch: dict[str, Tensor], iteration: int) -> Tensor:
        """Pseudo-labels of the disease images, B×1×H×W of 0 and 1. An updated one counts where its
        Jaccard index with the first one is at least min_teacher_iou."""
        config = self.config
        labels = self.first_pseudo_labels(batch)
        if config.target_update_freq and iteration >= self.first_update:
            with autocast(config, self.device):
                output = self.networks['target'].predict_mask(batch['A'])
            for index, soft_mask in enumerate(to_array(output.mask[:, 0])):
                updated = self._updated_label(soft_mask, batch['A'][index], labels[index])
                if jaccard(updated, labels[index]) >= config.min_teacher_iou:
                    labels[index] = updated
        return torch.from_numpy(np.stack(labels)[:, None].astype(np.float32)).to(self.device)

    def _updated_label(self, soft_mask: np.ndarray, image: Tensor, first: np.ndarray) -> np.ndarray:
        """The pseudo-label H×W bool of the target network's soft mask. Refined again and again,
        lesions of several shades would shrink, so a refined one keeps the first one's core."""
        config = self.config
        label = refinement.clean(threshold(to_bytes(soft_mask)), config.keep_components)
        if not config.refine:
            return label
        label = refinement.refine(label, visualize.from_tensor(image), config.refinement)
        core = refinement.erode(refinement.CORE, first)
        return refinement.clean(label | core, config.keep_components)

    def first_pseudo_labels(self, batch: dict[str, Tensor]) -> list[np.ndarray]:
        """Those of the teacher's soft masks, H×W bool each. They are kept, since refining an
        outline takes longer than an iteration of the network."""
        labels = []
        for mask, image in zip(batch['mask'], batch['A'], strict=True):
            digest = hashlib.sha256(to_array(mask).tobytes() + to_array(image).tobytes()).digest()
            if digest not in self.first_labels:
                label, = pseudo_labels(mask[None], image[None], self.config, self.config.refine)
                self.first_labels[digest] = np.packbits(label)
            labels.append(np.unpackbits(self.first_labels[digest], count=mask.numel())
                          .reshape(self.config.size).astype(bool))
        return labels

    def visuals(self, image: Tensor, mask: Tensor | None = None) -> dict[str, np.ndarray]:
        output = self.mask_network.predict_mask(image)
        label, = pseudo_labels(mask, image, self.config, self.config.refine)
        return {'image': visualize.from_tensor(image[0]),
                'stage-1 mask': visualize.from_tensor(mask[0]),
                'pseudo-label': visualize.from_mask(label.astype(np.float32)),
                'student mask': visualize.from_mask(to_array(output.mask[0, 0]))}


def places_in_whole_batch(disease: int, normal: int) -> list[int]:
    """Where this process's images are in the batch of all processes: first all disease images, then
    all normal ones."""
    all_disease, all_normal = (distributed.world_size() * count for count in (disease, normal))
    return [*range(all_disease)[distributed.shard_slice(all_disease)],
            *range(all_disease, all_disease + all_normal)[distributed.shard_slice(all_normal)]]
