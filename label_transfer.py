"""Label transfer: one training step of the published method, stage 1 and stage 2 alike.

Two generators translate disease A to normal B and back; four discriminators judge. In stage 2
(first generation) the second picture of a generator is the stage-1 mask of the disease picture.
"""
import torch
from torch import Tensor

import losses
import pictures
from masks import as_companion, autocast, to_array
from networks import Translation, build_networks, clip_rho
from settings import DISCRIMINATORS, GENERATORS, Settings

DIRECTIONS = (('A', 'B'), ('B', 'A'))  # source, target


class LabelTransfer:
    """The six networks, their two optimisers, and one step on a batch."""

    LOSSES = ('discriminator', 'generator', 'adversarial', 'cycle', 'identity',
              'class_attention', 'recon')
    SHOWN = ('discriminator', 'generator')  # in the progress bar

    def __init__(self, settings: Settings, device: torch.device):
        self.settings = settings
        self.device = device
        self.networks = build_networks(settings).to(device)
        self.optimizers = {
            name: torch.optim.Adam(
                [parameter for network in names
                 for parameter in self.networks[network].parameters()],
                settings.lr, betas=(0.5, 0.999), weight_decay=settings.weight_decay)
            for name, names in (('generators', GENERATORS), ('discriminators', DISCRIMINATORS))}

    @property
    def mask_network(self):
        """The network that makes the masks of disease pictures."""
        return self.networks['genA2B']

    def step(self, batch: dict[str, Tensor], iteration: int) -> dict[str, Tensor]:
        """One iteration on a batch of each domain; the weighted losses by name, and the mean mask
        of A as `mask_share`.

        `batch` holds A and B, B×img_ch×H×W in [-1, 1], and in stage 2 the stage-1 masks of A,
        `mask`, B×1×H×W in [-1, 1].
        """
        self.networks.train()
        real = {domain: batch[domain] for domain in 'AB'}
        companions = self._companions(batch)
        with autocast(self.settings, self.device):
            translated, kept = self._translate(real, companions)
        discriminator_loss = self._update_discriminators(real, translated)
        return {'discriminator': discriminator_loss,
                **self._update_generators(real, translated, kept),
                'mask_share': translated['A'].mask.detach().float().mean()}

    def _companions(self, batch) -> dict[str, Tensor]:
        """The second picture of a first-generation generator by domain: for A in stage 2 its
        stage-1 mask, else the picture itself."""
        companions = {domain: batch[domain] for domain in 'AB'}
        if 'mask' in batch:
            companions['A'] = as_companion(batch['mask'], self.settings.img_ch)
        return companions

    def _translate(self, real, companions) -> tuple[dict[str, Translation],
                                                    dict[str, Translation]]:
        """By domain d of the pictures: them translated, and them kept (put through the generator
        that leads to d). One pass a generator: nothing in it mixes the pictures of a batch."""
        translated, kept = {}, {}
        for source, target in DIRECTIONS:
            generator = self.networks[f'gen{source}2{target}']
            inputs = [torch.cat([real[source], real[target]])]
            if self.settings.generation == 'first':
                inputs.append(torch.cat([companions[source], companions[target]]))
            made = generator(*inputs, with_recon=self.settings.recon_weight > 0)
            translated[source], kept[target] = split(made, len(real[source]))
        return translated, kept

    def _update_discriminators(self, real, translated) -> Tensor:
        """dis_weight · Σ over the four discriminators of (real → 1) + (fake → 0)."""
        loss = 0
        with autocast(self.settings, self.device):
            for source, domain in DIRECTIONS:
                # detached: this loss does not go back into the generators
                both = torch.cat([real[domain], translated[source].fake.detach().float()])
                for discriminator in self._discriminators(domain):
                    of_real, of_fake = split(discriminator(both), len(real[domain]))
                    loss = (loss + losses.adversarial(of_real, real=True)
                            + losses.adversarial(of_fake, real=False))
        loss = self.settings.dis_weight * loss
        self._descend('discriminators', loss)
        return loss.detach()

    def _update_generators(self, real, translated, kept) -> dict[str, Tensor]:
        """Σ of the weighted losses; discriminators judge but collect no gradient."""
        self._let_discriminators_learn(False)
        with autocast(self.settings, self.device):
            terms = self._generator_losses(real, translated, kept)
        total = sum(terms.values())
        self._descend('generators', total)
        for name in GENERATORS:
            clip_rho(self.networks[name])
        self._let_discriminators_learn(True)
        return {name: value.detach() for name, value in {'generator': total, **terms}.items()}

    def _generator_losses(self, real, translated, kept) -> dict[str, Tensor]:
        """The weighted terms of the generators' loss, by name."""
        settings = self.settings
        weights = {'adversarial': settings.adv_weight, 'cycle': settings.cycle_weight,
                   'identity': settings.identity_weight, 'class_attention': settings.cam_weight,
                   'recon': settings.recon_weight}
        terms = dict.fromkeys(weights, torch.zeros((), device=self.device))
        for source, target in DIRECTIONS:
            image, made, stayed = real[source], translated[source], kept[source]
            back = self.networks[f'gen{target}2{source}'](made.fake.float(), with_recon=False)
            # joint discrimination: the second generation's composite has to pass as well
            judged = [discriminator(picture.float())
                      for discriminator in self._discriminators(target)
                      for picture in (made.fake, made.composite) if picture is not None]
            parts = {
                'adversarial': sum(losses.adversarial(one, real=True) for one in judged),
                'cycle': losses.picture_distance(back.fake, image),
                'identity': losses.picture_distance(stayed.fake, image),
                'class_attention': losses.class_attention(made.cam_logit, source_domain=True)
                + losses.class_attention(stayed.cam_logit, source_domain=False)}
            if made.recon is not None:
                parts['recon'] = losses.picture_distance(made.recon, image)
            for name, part in parts.items():
                terms[name] = terms[name] + weights[name] * part
        return terms

    def _discriminators(self, domain):
        """The global and the local one that know the pictures of a domain."""
        return self.networks[f'disG{domain}'], self.networks[f'disL{domain}']

    def _let_discriminators_learn(self, learn):
        for name in DISCRIMINATORS:
            self.networks[name].requires_grad_(learn)

    def _descend(self, name, loss):
        self.optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers[name].step()

    def sheet_column(self, image: Tensor, mask: Tensor | None) -> dict:
        """What a sheet shows of one picture 1×img_ch×H×W (and in stage 2 its stage-1 mask).

        The first generation's reconstruction decoder enters no loss and stays untrained; the
        picture that comes back from A to B to A stands in its place.
        """
        there, back = self.networks['genA2B'], self.networks['genB2A']
        inputs = [image] if mask is None else [image, as_companion(mask, self.settings.img_ch)]
        made = there(*inputs)
        column = {'image': pictures.from_tensor(image[0])}
        if mask is not None:
            column['stage-1 mask'] = pictures.from_tensor(mask[0])
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
