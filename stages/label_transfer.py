"""Label transfer, the published method: stage 1, and stage 2 as published.

One step, in short (both directions A → B and B → A, one after the other):

    translated, identity = gen(source image), gen(target image)   # one generator, two inputs
    discriminators (global, local) of the target domain:
        learn  real target image → 1, translated → 0              # and take their step
    generator:
        adversarial      discriminators(translated) → 1
        cycle            gen_back(translated) ≈ source image
        identity         identity ≈ target image
        class attention  1 for the source image, 0 for the target image
        reconstruction   the decoder of features alone ≈ source image (second generation)
        localization     mask of A ≈ localization map; mask of B ≈ 0 (ours, stage 1)
    generators take their step; every ρ is clipped to [0, 1]

In published stage 2 the generator's second image, the conditioning image, is the stage-1 mask."""
from collections import Counter

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from config import DISCRIMINATORS, GENERATORS, Config
from inference.soft_masks import as_conditioning, autocast, to_array
from networks import GeneratorOutput, clip_rho
from reporting import visualize
from runtime import distributed
from stages import losses
from stages.augmentation import crop_source_size, published_augmentation
from stages.base import Stage, StepResult
from stages.optim import make_optimizer, step_if_finite
from stages.pseudo_labels import pseudo_labels

DIRECTIONS = (('A', 'B'), ('B', 'A'))  # source, target


class LabelTransferStage(Stage):
    """Two generators, four discriminators, and an optimizer for each group."""

    loss_names = ('discriminator', 'generator', 'adversarial', 'cycle', 'identity',
                  'class_attention', 'recon', 'localization', 'normal_mask')
    progress_names = ('discriminator', 'generator')

    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__(config, device)
        # gradients are shared among processes by way of these; generators may leave out a decoder
        self.ddp = {name: distributed.wrap_ddp(network, whole=name not in GENERATORS)
                    for name, network in self.networks.items()}
        self.optimizers = {
            group: make_optimizer([self.networks[name] for name in names], config, device,
                                  published=True)
            for group, names in (('generators', GENERATORS), ('discriminators', DISCRIMINATORS))}

    # ------------------------------------------------------------------------------------- step

    def step(self, batch: dict[str, Tensor], iteration: int) -> StepResult:
        """See Stage.step."""
        self.networks.train()
        real = {domain: batch[domain] for domain in 'AB'}
        conditioning, lesion = self._conditioning(batch), self._lesion(batch)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        # one direction after the other, so that only its feature maps are kept for a backward pass
        sums, skipped = Counter(), 0
        for source, target in DIRECTIONS:
            # ---------------------------------------------------------------- translation
            is_last = (source, target) == DIRECTIONS[-1]
            with distributed.no_sync([self.ddp[name] for name in GENERATORS if not is_last]):
                with autocast(self.config, self.device):
                    translated, identity = self._translate(real, conditioning, source, target)
                # ------------------------------------------------------------ discriminators
                loss, was_skipped = self._update_discriminators(real[target], translated, target)
                sums['discriminator'] += loss
                skipped = skipped + was_skipped
                # ------------------------------------------------------------ generators
                frozen = self._discriminators(self.networks, target)
                for discriminator in frozen:
                    discriminator.requires_grad_(False)
                with autocast(self.config, self.device):
                    terms = self._generator_losses(real, translated, identity, source, target)
                    if source == 'A':
                        terms |= self._mask_losses(translated, identity, lesion)
                        mask_share = translated.mask.detach().float().mean()
                sum(terms.values()).backward()
                for discriminator in frozen:
                    discriminator.requires_grad_(True)
            for name, term in terms.items():
                sums[name] += term.detach()
        # ------------------------------------------------------------------------ update
        discriminator = sums.pop('discriminator')
        generator = sum(sums.values())
        skipped = skipped + step_if_finite(self.optimizers['generators'], generator)
        for name in GENERATORS:
            clip_rho(self.networks[name])
        values = {'discriminator': discriminator, 'generator': generator, **sums}
        return StepResult(values, mask_share, skipped.clamp(max=1))

    def _conditioning(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The second image of a first-generation generator by domain: for A in published stage 2
        the stage-1 mask, else the image itself."""
        conditioning = {domain: batch[domain] for domain in 'AB'}
        if self.config.takes_conditioning:
            conditioning['A'] = as_conditioning(batch['mask'], self.config.img_ch)
        return conditioning

    def _lesion(self, batch: dict[str, Tensor]) -> Tensor | None:
        """What the localization maps teach the mask of A in stage 1, B×1×H×W of 0 and 1; None where
        no localizer teaches. Outlines are not refined: stage 2 does that, and twice is too much."""
        if self.config.takes_conditioning or 'mask' not in batch:
            return None
        labels = pseudo_labels(batch['mask'], batch['A'], 'clean', self.config)
        return torch.from_numpy(np.stack(labels)[:, None]).float().to(self.device,
                                                                      non_blocking=True)

    def _translate(self, real: dict[str, Tensor], conditioning: dict[str, Tensor], source: str,
                   target: str) -> tuple[GeneratorOutput, GeneratorOutput]:
        """Images of the source translated, and images of the target through the same generator, by
        one pass: nothing in it mixes the images of a batch."""
        count = len(real[source])
        inputs = [torch.cat([real[source], real[target]])]
        if self.config.generation == 'first':
            inputs.append(torch.cat([conditioning[source], conditioning[target]]))
        recon_of = count if self.config.recon_weight else 0
        return split(self.ddp[f'gen{source}2{target}'](*inputs, recon_of=recon_of), count)

    def _update_discriminators(self, real: Tensor, translated: GeneratorOutput,
                               domain: str) -> tuple[Tensor, Tensor]:
        """dis_weight · Σ over the two discriminators of a domain of (real → 1) + (fake → 0), their
        step, and whether it was skipped."""
        loss = 0
        with autocast(self.config, self.device):
            # detached: this loss does not go back into the generators
            both = torch.cat([real, translated.fake.detach().float()])
            for discriminator in self._discriminators(self.ddp, domain):
                of_real, of_fake = split(discriminator(both), len(real))
                loss = (loss + losses.adversarial(of_real, real=True)
                        + losses.adversarial(of_fake, real=False))
        loss = self.config.dis_weight * loss
        loss.backward()
        optimizer = self.optimizers['discriminators']  # those of this domain alone have gradients
        skipped = step_if_finite(optimizer, loss)
        optimizer.zero_grad(set_to_none=True)
        return loss.detach(), skipped

    def _generator_losses(self, real: dict[str, Tensor], translated: GeneratorOutput,
                          identity: GeneratorOutput, source: str, target: str) -> dict[str, Tensor]:
        """The weighted terms of the generators' loss in one direction, by name."""
        config = self.config
        back = self.ddp[f'gen{target}2{source}'](translated.fake.float(), recon_of=0)
        # joint discrimination: the second generation's composite has to pass as well
        outputs = [discriminator(image.float())
                   for discriminator in self._discriminators(self.networks, target)
                   for image in (translated.fake, translated.composite) if image is not None]
        adversarial = sum(losses.adversarial(output, real=True) for output in outputs)
        attention = (losses.class_attention(translated.cam_logit, source_domain=True)
                     + losses.class_attention(identity.cam_logit, source_domain=False))
        none = torch.zeros((), device=self.device)
        terms = {'adversarial': config.adv_weight * adversarial,
                 'cycle': config.cycle_weight * losses.l1(back.fake, real[source]),
                 'identity': config.identity_weight * losses.l1(identity.fake, real[target]),
                 'class_attention': config.cam_weight * attention,
                 'recon': none, 'localization': none, 'normal_mask': none}
        if translated.recon is not None:
            terms['recon'] = config.recon_weight * losses.l1(translated.recon, real[source])
        return terms

    def _mask_losses(self, translated: GeneratorOutput, identity: GeneratorOutput,
                     lesion: Tensor | None) -> dict[str, Tensor]:
        """The weighted terms of our recipe for the masks of disease images (`lesion`: what the
        localization maps teach, or None) and of normal ones."""
        config, terms = self.config, {}
        of_disease, of_normal = (torch.logit(output.mask.float(), 1e-4)
                                 for output in (translated, identity))
        if lesion is not None:
            terms['localization'] = config.localization_weight * (
                losses.cross_entropy(of_disease, lesion) + losses.dice(of_disease, lesion))
        if config.normal_mask_weight and not config.takes_conditioning:
            terms['normal_mask'] = config.normal_mask_weight * losses.cross_entropy(
                of_normal, torch.zeros_like(of_normal))
        return terms

    @staticmethod
    def _discriminators(networks: dict[str, nn.Module] | nn.ModuleDict,
                        domain: str) -> tuple[nn.Module, nn.Module]:
        """The global and the local discriminator of a domain."""
        return networks[f'disG{domain}'], networks[f'disL{domain}']

    # ------------------------------------------------------------------ data and visuals

    @staticmethod
    def sample_size(config: Config) -> tuple[int, int]:
        return crop_source_size(config.size) if config.augment else config.size

    def augment_sample(self, image: Image.Image, rng: np.random.Generator,
                       is_mask: bool) -> Image.Image:
        size, augment = self.config.size, self.config.augment
        return published_augmentation(image, size, rng, is_mask) if augment else image

    def visuals(self, image: Tensor, mask: Tensor | None = None) -> dict[str, np.ndarray]:
        """The first generation's reconstruction decoder enters no loss and stays untrained; the
        image that comes back from A to B to A is shown in its place."""
        inputs = [image]
        rows = {'image': visualize.from_tensor(image[0])}
        if mask is not None:
            rows['teacher_mask'] = visualize.from_tensor(mask[0])
        if mask is not None and self.config.takes_conditioning:
            inputs.append(as_conditioning(mask, self.config.img_ch))
        elif mask is not None:
            lesion, = self._lesion({'A': image, 'mask': mask})
            rows['pseudo_label'] = visualize.from_mask(to_array(lesion[0]))
        output = self.networks['genA2B'](*inputs)
        rows |= {'heatmap': visualize.from_heatmap(to_array(output.heatmap[0, 0])),
                 'mask': visualize.from_mask(to_array(output.mask[0, 0])),
                 'translation': visualize.from_tensor(output.fake[0])}
        if self.config.generation == 'first':
            rows['content'] = visualize.from_tensor(output.content[0])
            back = self.networks['genB2A'](output.fake)
            rows['cycle'] = visualize.from_tensor(back.fake[0])
        else:
            rows['composite'] = visualize.from_tensor(output.composite[0])
            rows['reconstruction'] = visualize.from_tensor(output.recon[0])
        return rows


def split(outputs: tuple, count: int) -> tuple[tuple, tuple]:
    """A named tuple of batches as two: the first `count` images, and the others."""
    parts = zip(*((None, None) if value is None else (value[:count], value[count:])
                  for value in outputs), strict=True)
    return tuple(type(outputs)(*part) for part in parts)
