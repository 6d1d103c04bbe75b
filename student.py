"""Stage 2: a student learns lesion masks from a teacher (teacher–student self-training).

The first targets are the stage-1 masks of trainA. After a warm-up the moving average of the
student is the teacher (mean teacher: Tarvainen and Valpola 2017), copied every `renew_freq`
iterations. The teacher sees the plain picture, the student a strongly augmented one, and normal
pictures teach an empty mask.
"""
import hashlib

import numpy as np
import torch
from torch import Tensor

import losses
import outline
import parallel
import pictures
import steps
from augmentation import Draws, change_pose, fade, recolour
from masks import autocast, teaching_targets, to_array
from networks import build_networks, make_ready
from postprocess import threshold, to_bytes
from settings import Settings
from utils import seeded


class Student:
    """The student, its moving average, the teacher, an optimiser, and one step on a batch."""

    LOSSES = ('total', 'cross_entropy', 'dice', 'normal')
    SHOWN = ('total',)

    def __init__(self, settings: Settings, device: torch.device):
        self.settings = settings
        self.device = device
        self.networks = make_ready(build_networks(settings), settings, device)
        self._copy_student()
        self.drawn = {}  # first targets, packed, by what they were made of
        self.shared = parallel.share_gradients(self.networks['student'])
        self.optimizers = {'student': torch.optim.AdamW(
            self.networks['student'].parameters(), settings.lr,
            weight_decay=settings.weight_decay, fused=device.type in ('cpu', 'cuda'))}

    def _copy_student(self):
        for name in ('average', 'teacher'):
            self.networks[name].load_state_dict(self.networks['student'].state_dict())
            self.networks[name].requires_grad_(False)

    def begin_from(self, locator: dict[str, Tensor]) -> None:
        """Take the tensors of a locator of stage 0 over. Raises ValueError where they do not fit."""
        try:
            self.networks['student'].locator.load_state_dict(locator)
        except RuntimeError:
            raise ValueError('of another shape') from None
        self._copy_student()

    @property
    def mask_network(self):
        """The network that makes the masks of disease pictures."""
        return self.networks['average']

    def step(self, batch: dict[str, Tensor], iteration: int) -> dict[str, Tensor]:
        """One iteration; the weighted losses by name, and the mean mask of A as `mask_share`.

        `batch` holds A and B, img_ch×H×W pictures in [-1, 1], and the stage-1 masks of A, `mask`,
        1×H×W in [-1, 1].
        """
        settings = self.settings
        self.networks.train()
        target, weight = self.targets(batch, iteration)
        disease = len(target)
        empty = torch.zeros(len(batch['B']), *target.shape[1:], device=self.device)
        image = torch.cat([batch['A'], batch['B']])
        target, weight = torch.cat([target, empty]), torch.cat([weight, torch.ones_like(empty)])
        if settings.augment:
            draws = Draws(seeded((settings.seed, iteration)), parallel.processes() * len(image),
                          places_in_whole_batch(disease, len(empty)))
            parts = change_pose(torch.cat([image, target, weight], 1), draws, settings.turn)
            image, target, weight = parts.split([image.shape[1], 1, 1], 1)
            image = fade(image, draws) if settings.fade else recolour(image, draws)
            target, weight = target.round(), weight.round()
        image = image.contiguous(memory_format=torch.channels_last)

        with autocast(settings, self.device):
            logit = self.shared(image)
        of_disease = [part[:disease] for part in (logit, target, weight)]
        of_normal = [part[disease:] for part in (logit, target, weight)]
        # pixels that count may be unevenly spread over the processes
        share = weight[:disease].sum() / parallel.mean(weight[:disease].sum()).clamp(min=1)
        terms = {'cross_entropy': share * settings.ce_weight * losses.cross_entropy(*of_disease),
                 'dice': settings.dice_weight * losses.dice(*of_disease),
                 'normal': settings.normal_weight * losses.cross_entropy(*of_normal)}
        total = sum(terms.values())
        optimizer = self.optimizers['student']
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        skipped = steps.take(optimizer, total)
        if not skipped:
            self._update_average(iteration)
        terms['mask_share'] = torch.sigmoid(logit[:disease].float()).mean()
        return {name: value.detach()
                for name, value in {'total': total, **terms, 'skipped': skipped}.items()}

    @torch.no_grad()
    def targets(self, batch, iteration) -> tuple[Tensor, Tensor]:
        """Targets of the disease pictures and how far each pixel counts, B×1×H×W in [0, 1]."""
        settings = self.settings
        targets = self.first_targets(batch)
        weights = np.ones((len(targets), *settings.size), np.float32)
        if settings.renew_freq and iteration >= self.first_renewal:
            with autocast(settings, self.device):
                soft = to_array(self.networks['teacher'].predict_mask(batch['A']).mask[:, 0])
            share = min(1, (iteration - self.first_renewal + 1) / max(1, settings.ramp_up))
            whole = parallel.processes() * len(soft)
            drawn = np.random.default_rng((settings.seed, iteration, 2)).random(whole)[
                parallel.my_part(whole)]
            for index in np.flatnonzero(drawn < share):
                renewed = outline.clean(threshold(to_bytes(soft[index])), settings.component)
                if settings.fit:
                    renewed = outline.draw(renewed, pictures.from_tensor(batch['A'][index]),
                                           settings.lesions)
                    # drawn anew and anew, lesions of several shades would shrink
                    renewed = outline.clean(
                        renewed | outline.deeper_than(outline.CORE, targets[index]),
                        settings.component)
                if jaccard(renewed, targets[index]) >= settings.guard:
                    targets[index] = renewed
                    weights[index] = np.abs(2 * soft[index] - 1) >= settings.confidence
        return tuple(torch.from_numpy(np.stack(maps)[:, None].astype(np.float32)).to(self.device)
                     for maps in (targets, weights))

    def first_targets(self, batch) -> list[np.ndarray]:
        """What the stage-1 masks teach, H×W bool each; of a picture seen before as it was then, since
        drawing outlines takes longer than an iteration of the network."""
        made = []
        for mask, image in zip(batch['mask'], batch['A']):
            digest = hashlib.sha256(to_array(mask).tobytes() + to_array(image).tobytes()).digest()
            if digest not in self.drawn:
                target, = teaching_targets(mask[None], image[None], self.settings.lesions,
                                           self.settings.fit)
                self.drawn[digest] = np.packbits(target)
            made.append(np.unpackbits(self.drawn[digest], count=mask.numel())
                        .reshape(self.settings.size).astype(bool))
        return made

    @property
    def first_renewal(self) -> int:
        """The iteration after which the average first becomes the teacher."""
        return self.settings.warm_up or self.settings.renew_freq

    @torch.no_grad()
    def _update_average(self, iteration):
        """average ← d·average + (1 − d)·student; d grows to ema_decay, so that the start is
        forgotten. Then, when it is due, teacher ← average."""
        settings = self.settings
        decay = min(settings.ema_decay, (1 + iteration) / (10 + iteration))
        for mean, new in zip(self.networks['average'].parameters(),
                             self.networks['student'].parameters()):
            mean.lerp_(new, 1 - decay)
        since = iteration + 1 - self.first_renewal
        if settings.renew_freq and since >= 0 and since % settings.renew_freq == 0:
            self.networks['teacher'].load_state_dict(self.networks['average'].state_dict())

    def sheet_column(self, image: Tensor, mask: Tensor) -> dict:
        """What a sheet shows of one picture 1×img_ch×H×W and its stage-1 mask."""
        made = self.mask_network.predict_mask(image).mask
        first, = teaching_targets(mask, image, self.settings.lesions, self.settings.fit)
        return {'image': pictures.from_tensor(image[0]),
                'stage-1 mask': pictures.from_tensor(mask[0]),
                'first target': pictures.from_mask(first.astype(np.float32)),
                'student mask': pictures.from_mask(to_array(made[0, 0]))}


def places_in_whole_batch(disease: int, normal: int) -> list[int]:
    """Where this process's pictures are in the batch of all processes: first all of disease, then
    all normal ones."""
    all_disease, all_normal = (parallel.processes() * count for count in (disease, normal))
    return [*range(all_disease)[parallel.my_part(all_disease)],
            *range(all_disease, all_disease + all_normal)[parallel.my_part(all_normal)]]


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Of two boolean masks, 0 to 1; 1 of two empty ones."""
    either = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / either if either else 1.0
