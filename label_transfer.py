"""Label transfer: one training step of the published method, stage 1 and stage 2 alike.

Two generators translate disease A to normal B and back; four discriminators judge. In stage 2
(first generation) the second picture of a generator is the stage-1 mask of the disease picture.
"""
import numpy as np
import torch
from torch import Tensor

import losses
import parallel
import pictures
import steps
from masks import as_companion, autocast, teaching_targets, to_array
from networks import Translation, build_networks, clip_rho, make_ready
from settings import DISCRIMINATORS, GENERATORS, Settings

DIRECTIONS = (('A', 'B'), ('B', 'A'))  # source, target


class LabelTransfer:
    """The six networks, their two optimisers, and one step on a batch."""

    LOSSES = ('discriminator', 'generator', 'adversarial', 'cycle', 'identity',
              'class_attention', 'recon', 'location', 'normal_mask')
    SHOWN = ('discriminator', 'generator')  # in the progress bar

    def __init__(self, settings: Settings, device: torch.device):
        self.settings = settings
        self.device = device
        self.networks = make_ready(build_networks(settings), settings, device)
        # what collects gradients is called by way of these; generators may leave out a decoder
        self.shared = {name: parallel.share_gradients(network, whole=name not in GENERATORS)
                       for name, network in self.networks.items()}
        self.optimizers = {
            name: torch.optim.Adam(
                [parameter for network in names
                 for parameter in self.networks[network].parameters()],
                settings.lr, betas=(0.5, 0.999), weight_decay=settings.weight_decay,
                fused=device.type in ('cpu', 'cuda'))
            for name, names in (('generators', GENERATORS), ('discriminators', DISCRIMINATORS))}

    @property
    def mask_network(self):
        """The network that makes the masks of disease pictures."""
        return self.networks['genA2B']

    def step(self, batch: dict[str, Tensor], iteration: int) -> dict[str, Tensor]:
        """One iteration on a batch of each domain; the weighted losses by name, and the mean mask
        of A as `mask_share`.

        `batch` holds A and B, B×img_ch×H×W in [-1, 1], and `mask`, B×1×H×W in [-1, 1]: in stage 2
        the stage-1 masks of A, in stage 1 the locator's, where it teaches.
        """
        self.networks.train()
        real = {domain: batch[domain] for domain in 'AB'}
        companions = self._companions(batch)
        lesion = self._located(batch) if self.settings.stage == 1 and 'mask' in batch else None
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        # One direction after the other: every loss is a sum over the two, and only one direction's
        # pictures have to be kept for a backward pass at a time.
        sums, mask_share = {}, None
        for source, target in DIRECTIONS:
            earlier = (source, target) != DIRECTIONS[-1]
            with parallel.gradients_stay_here([self.shared[name] for name in GENERATORS
                                               if earlier]):
                terms, translated = self._learn_direction(real, companions, lesion, source, target)
            sums = {name: sums.get(name, 0) + term for name, term in terms.items()}
            if source == 'A':
                mask_share = translated.mask.detach().float().mean()
        discriminator, skipped = sums.pop('discriminator'), sums.pop('skipped')
        generator = sum(sums.values())
        skipped = skipped + steps.take(self.optimizers['generators'], generator)
        for name in GENERATORS:
            clip_rho(self.networks[name])
        return {'discriminator': discriminator, 'generator': generator, **sums,
                'mask_share': mask_share, 'skipped': skipped.clamp(max=1)}

    def _learn_direction(self, real, companions, lesion, source, target):
        """The weighted losses of one direction by name, and the translated pictures. The
        discriminators of the target take their step; the generators collect gradients."""
        with autocast(self.settings, self.device):
            translated, kept = self._translate(real, companions, source, target)
        loss, skipped = self._update_discriminators(real[target], translated, target)
        for judge in (judges := self._discriminators(self.networks, target)):
            judge.requires_grad_(False)
        with autocast(self.settings, self.device):
            parts = self._generator_losses(real, translated, kept, source, target)
            if source == 'A':
                parts |= self._mask_losses(translated, kept, lesion)
        sum(parts.values()).backward()
        for judge in judges:
            judge.requires_grad_(True)
        return {'discriminator': loss, 'skipped': skipped,
                **{name: part.detach() for name, part in parts.items()}}, translated

    def _located(self, batch) -> Tensor:
        """What the locator's masks teach, B×1×H×W of 0 and 1. Not fitted to the pictures: stage 2
        does that, and done twice it makes lesions too small."""
        targets = teaching_targets(batch['mask'], batch['A'], self.settings.lesions, fit=False)
        return torch.from_numpy(np.stack(targets)[:, None]).float().to(self.device)

    def _companions(self, batch) -> dict[str, Tensor]:
        """The second picture of a first-generation generator by domain: for A in stage 2 its
        stage-1 mask, else the picture itself."""
        companions = {domain: batch[domain] for domain in 'AB'}
        if 'mask' in batch and self.settings.stage == 2:
            companions['A'] = as_companion(batch['mask'], self.settings.img_ch)
        return companions

    def _translate(self, real, companions, source, target) -> tuple[Translation, Translation]:
        """Pictures of the source translated, and pictures of the target kept, by one pass of the
        generator from source to target: nothing in it mixes the pictures of a batch."""
        count = len(real[source])
        inputs = [torch.cat([real[source], real[target]])]
        if self.settings.generation == 'first':
            inputs.append(torch.cat([companions[source], companions[target]]))
        made = self.shared[f'gen{source}2{target}'](
            *inputs, recon_of=count if self.settings.recon_weight else 0)
        return split(made, count)

    def _update_discriminators(self, real, translated, domain) -> tuple[Tensor, Tensor]:
        """dis_weight · Σ over the discriminators of a domain of (real → 1) + (fake → 0)."""
        loss = 0
        with autocast(self.settings, self.device):
            # detached: this loss does not go back into the generators
            both = torch.cat([real, translated.fake.detach().float()])
            for discriminator in self._discriminators(self.shared, domain):
                of_real, of_fake = split(discriminator(both), len(real))
                loss = (loss + losses.adversarial(of_real, real=True)
                        + losses.adversarial(of_fake, real=False))
        loss = self.settings.dis_weight * loss
        loss.backward()
        # of those that have a gradient
        skipped = steps.take(self.optimizers['discriminators'], loss)
        self.optimizers['discriminators'].zero_grad(set_to_none=True)
        return loss.detach(), skipped

    def _generator_losses(self, real, translated, kept, source, target) -> dict[str, Tensor]:
        """The weighted terms of the generators' loss in one direction, by name."""
        settings = self.settings
        back = self.shared[f'gen{target}2{source}'](translated.fake.float(), recon_of=0)
        # joint discrimination: the second generation's composite has to pass as well
        judged = [judge(picture.float())
                  for judge in self._discriminators(self.networks, target)
                  for picture in (translated.fake, translated.composite) if picture is not None]
        terms = {
            'adversarial': settings.adv_weight * sum(
                losses.adversarial(one, real=True) for one in judged),
            'cycle': settings.cycle_weight * losses.picture_distance(back.fake, real[source]),
            'identity': settings.identity_weight * losses.picture_distance(kept.fake,
                                                                           real[target]),
            'class_attention': settings.cam_weight * (
                losses.class_attention(translated.cam_logit, source_domain=True)
                + losses.class_attention(kept.cam_logit, source_domain=False)),
            **dict.fromkeys(('recon', 'location', 'normal_mask'),
                            torch.zeros((), device=self.device))}
        if translated.recon is not None:
            terms['recon'] = settings.recon_weight * losses.picture_distance(translated.recon,
                                                                             real[source])
        return terms

    def _mask_losses(self, translated, kept, lesion) -> dict[str, Tensor]:
        """The weighted terms of our recipe for the masks of disease pictures (`lesion` as the locator
        has it, or None) and of normal ones."""
        settings, terms = self.settings, {}
        of_disease, of_normal = (torch.logit(made.mask.float(), 1e-4) for made in (translated, kept))
        everywhere = torch.ones_like(of_disease)
        if lesion is not None:
            terms['location'] = settings.location_weight * (
                losses.cross_entropy(of_disease, lesion, everywhere)
                + losses.dice(of_disease, lesion, everywhere))
        if settings.normal_mask_weight and settings.stage == 1:
            terms['normal_mask'] = settings.normal_mask_weight * losses.cross_entropy(
                of_normal, torch.zeros_like(of_normal), torch.ones_like(of_normal))
        return terms

    @staticmethod
    def _discriminators(networks, domain):
        """The global and the local one that know the pictures of a domain."""
        return networks[f'disG{domain}'], networks[f'disL{domain}']

    def sheet_column(self, image: Tensor, mask: Tensor | None) -> dict:
        """What a sheet shows of one picture 1×img_ch×H×W (and in stage 2 its stage-1 mask).

        The first generation's reconstruction decoder enters no loss and stays untrained; the
        picture that comes back from A to B to A stands in its place.
        """
        there, back = self.networks['genA2B'], self.networks['genB2A']
        inputs = [image]
        column = {'image': pictures.from_tensor(image[0])}
        if mask is not None and self.settings.stage == 2:
            inputs.append(as_companion(mask, self.settings.img_ch))
            column['stage-1 mask'] = pictures.from_tensor(mask[0])
        elif mask is not None:
            target, = self._located({'mask': mask, 'A': image})
            column['location'] = pictures.from_tensor(mask[0])
            column['target'] = pictures.from_mask(to_array(target[0]))
        made = there(*inputs)
        column |= {
            'heatmap': pictures.from_heatmap(to_array(made.heatmap[0, 0])),
            'mask': pictures.from_mask(to_array(made.mask[0, 0])),
            'translation': pictures.from_tensor(made.fake[0])}
        if self.settings.generation == 'first':
            column['content'] = pictures.from_tensor(made.content[0])
            column['A to B to A'] = pictures.from_tensor(back(made.fake).fake[0])
        else:
            column['composite'] = pictures.from_tensor(made.composite[0])
            column['recon'] = pictures.from_tensor(made.recon[0])
        return column


def split(outputs, count: int):
    """A named tuple of batches as two: the first `count` pictures, and the others."""
    parts = zip(*((None, None) if value is None else (value[:count], value[count:])
                  for value in outputs))
    return tuple(type(outputs)(*part) for part in parts)
