"""The published method restated plainly, as the yardstick of speed and the check of exactness.

The same networks (and parameter names) as `networks.py` and the same training step as
`label_transfer.py`, but computed the way the published code does it: reflection padding as a pass
of its own, both variances of every normalisation from the pictures, every decoder run, one
picture pair after the other through each generator, every translation made once for the
discriminators and again for the generators, and nothing detached that need not be.
"""
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

EPSILON = 1e-5
DISCRIMINATORS = {'A': ('disGA', 'disLA'), 'B': ('disGB', 'disLB')}


def conv(in_channels, out_channels, kernel, stride=1):
    return nn.Conv2d(in_channels, out_channels, kernel, stride, bias=False)


def padded(layer, x):
    return layer(F.pad(x, [layer.kernel_size[0] // 2] * 4, mode='reflect'))


def normalise(x, dims):
    mean, variance = x.mean(dims, keepdim=True), x.var(dims, keepdim=True)
    return (x - mean) / torch.sqrt(variance + EPSILON)


def mixed(x, rho, gamma, beta):
    return (rho * normalise(x, (2, 3)) + (1 - rho) * normalise(x, (1, 2, 3))) * gamma + beta


class ILN(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.rho, self.gamma, self.beta = (
            nn.Parameter(torch.full((1, channels, 1, 1), start)) for start in (0.0, 1.0, 0.0))

    def forward(self, x):
        return mixed(x, self.rho, self.gamma, self.beta)


class AdaILN(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.rho = nn.Parameter(torch.full((1, channels, 1, 1), 0.9))

    def forward(self, x, gamma, beta):
        return mixed(x, self.rho, gamma[:, :, None, None], beta[:, :, None, None])


class ConvBlock(nn.Module):
    def __init__(self, in_channels, out_channels, kernel, norm, stride=1):
        super().__init__()
        self.conv = conv(in_channels, out_channels, kernel, stride)
        self.norm = norm(out_channels)

    def forward(self, x):
        return F.relu(self.norm(padded(self.conv, x)))


class ResidualBlock(nn.Module):
    def __init__(self, channels, norm=nn.InstanceNorm2d):
        super().__init__()
        self.conv1, self.norm1 = conv(channels, channels, 3), norm(channels)
        self.conv2, self.norm2 = conv(channels, channels, 3), norm(channels)

    def forward(self, x, *scale_shift):
        change = F.relu(self.norm1(padded(self.conv1, x), *scale_shift))
        return x + self.norm2(padded(self.conv2, change), *scale_shift)


class Encoder(nn.Module):
    def __init__(self, in_channels, ch, n_res):
        super().__init__()
        self.stem = ConvBlock(in_channels, ch, 7, nn.InstanceNorm2d)
        self.to_half = ConvBlock(ch, 2 * ch, 3, nn.InstanceNorm2d, 2)
        self.to_quarter = ConvBlock(2 * ch, 4 * ch, 3, nn.InstanceNorm2d, 2)
        self.residual = nn.Sequential(*[ResidualBlock(4 * ch) for _ in range(n_res)])

    def forward(self, x):
        return self.residual(self.to_quarter(self.to_half(self.stem(x))))


class ClassAttention(nn.Module):
    def __init__(self, channels, activation, wrap=lambda layer: layer):
        super().__init__()
        self.average_logit = wrap(nn.Linear(channels, 1, bias=False))
        self.maximum_logit = wrap(nn.Linear(channels, 1, bias=False))
        self.merge = nn.Conv2d(2 * channels, channels, 1)
        self.activation = activation

    def forward(self, features):
        logits, weighted = [], []
        for linear, pool in ((self.average_logit, F.adaptive_avg_pool2d),
                             (self.maximum_logit, F.adaptive_max_pool2d)):
            logits.append(linear(pool(features, 1).flatten(1)))
            weight = (linear.parametrizations.weight.original if hasattr(linear, 'parametrizations')
                      else linear.weight)
            weighted.append(features * weight[:, :, None, None])
        attended = self.activation(self.merge(torch.cat(weighted, 1)))
        return attended, torch.cat(logits, 1), attended.sum(1, keepdim=True)


class ScaleShift(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(channels, channels, bias=False), nn.ReLU(),
                                    nn.Linear(channels, channels, bias=False), nn.ReLU())
        self.gamma = nn.Linear(channels, channels, bias=False)
        self.beta = nn.Linear(channels, channels, bias=False)

    def forward(self, attended):
        hidden = self.hidden(attended.mean((2, 3)))
        return self.gamma(hidden), self.beta(hidden)


class Decoder(nn.Module):
    def __init__(self, channels, out_channels, kernel, activation):
        super().__init__()
        self.to_half = ConvBlock(channels, channels // 2, 3, ILN)
        self.to_full = ConvBlock(channels // 2, channels // 4, 3, ILN)
        self.output = conv(channels // 4, out_channels, kernel)
        self.activation = activation

    def forward(self, x):
        x = self.to_half(F.interpolate(x, scale_factor=2))
        x = self.to_full(F.interpolate(x, scale_factor=2))
        return self.activation(padded(self.output, x))


class FirstGenerator(nn.Module):
    def __init__(self, ch, n_res):
        super().__init__()
        channels = 4 * ch
        self.encoder = Encoder(6, ch, n_res)
        self.attention_residual = nn.Sequential(*[ResidualBlock(channels) for _ in range(2)])
        self.class_attention = ClassAttention(channels, nn.ReLU())
        self.mask_decoder = Decoder(channels, 1, 7, torch.sigmoid)
        self.scale_shift = ScaleShift(channels)
        self.translation_blocks = nn.ModuleList([ResidualBlock(channels, AdaILN)
                                                 for _ in range(n_res)])
        self.content_decoder = Decoder(channels, 3, 7, torch.tanh)
        self.recon_decoder = Decoder(channels, 3, 7, torch.tanh)

    def forward(self, image):
        features = self.encoder(torch.cat([image, image.detach()], 1))
        attended, cam_logit, _ = self.class_attention(self.attention_residual(features))
        mask = self.mask_decoder(attended)
        x, scale_shift = features, self.scale_shift(attended)
        for block in self.translation_blocks:
            x = block(x, *scale_shift)
        fake = mask * self.content_decoder(x) + (1 - mask) * image
        return {'fake': fake, 'mask': mask, 'cam_logit': cam_logit,
                'recon': self.recon_decoder(features)}


class SecondGenerator(nn.Module):
    def __init__(self, ch, n_res):
        super().__init__()
        channels = 4 * ch
        self.encoder = Encoder(3, ch, n_res)
        self.split = nn.Sequential(*[ConvBlock(channels, channels, 1, ILN) for _ in range(2)])
        self.class_attention = ClassAttention(channels, nn.ReLU())
        self.mask_output = conv(channels, 1, 3)
        self.scale_shift = ScaleShift(channels)
        self.recon_blocks = nn.ModuleList([ResidualBlock(channels, ILN) for _ in range(n_res)])
        self.translation_blocks = nn.ModuleList([ResidualBlock(channels, AdaILN)
                                                 for _ in range(n_res)])
        self.fake_decoder = Decoder(channels, 3, 3, torch.tanh)
        self.recon_decoder = Decoder(channels, 3, 7, torch.tanh)

    def forward(self, image):
        features = self.encoder(image)
        attended, cam_logit, _ = self.class_attention(self.split(features))
        mask = torch.sigmoid(padded(self.mask_output, attended))
        x, r, scale_shift = attended, features, self.scale_shift(attended)
        for recon_block, block in zip(self.recon_blocks, self.translation_blocks):
            r = recon_block(r)
            x = mask * block(x, *scale_shift) + (1 - mask) * r
        fake = self.fake_decoder(x)
        for _ in range(2):
            mask = F.interpolate(mask, scale_factor=2, mode='bilinear', align_corners=True)
        return {'fake': fake, 'mask': mask, 'cam_logit': cam_logit,
                'composite': mask * fake + (1 - mask) * image, 'recon': self.recon_decoder(r)}


class Discriminator(nn.Module):
    def __init__(self, depth, ch):
        super().__init__()

        def layer(in_channels, out_channels, stride, bias=True):
            return spectral_norm(nn.Conv2d(in_channels, out_channels, 4, stride, bias=bias))

        leaky = nn.LeakyReLU(0.2)
        layers = [layer(3, ch, 2), leaky]
        for index, stride in enumerate([2] * (depth - 3) + [1]):
            layers += [layer(ch * 2 ** index, ch * 2 ** (index + 1), stride), leaky]
        self.features = nn.Sequential(*layers)
        channels = ch * 2 ** (depth - 2)
        self.class_attention = ClassAttention(channels, leaky, spectral_norm)
        self.output = layer(channels, 1, 1, bias=False)

    def forward(self, x):
        for layer in self.features:
            x = layer(F.pad(x, [1] * 4, mode='reflect')) if isinstance(layer, nn.Conv2d) else layer(x)
        attended, cam_logit, _ = self.class_attention(x)
        return self.output(F.pad(attended, [1] * 4, mode='reflect')), cam_logit


def build(settings) -> nn.ModuleDict:
    """The six networks of light ones for colour pictures, by the names of `networks.py`."""
    generator = {'first': FirstGenerator, 'second': SecondGenerator}[settings.generation]
    depth = {'G': settings.n_dis + 1, 'L': settings.n_dis - 1}
    return nn.ModuleDict(
        {name: generator(settings.ch, settings.n_res) for name in ('genA2B', 'genB2A')}
        | {name: Discriminator(depth[name[3]], settings.ch)
           for names in DISCRIMINATORS.values() for name in names})


def adversarial(judged, target):
    return sum(F.mse_loss(logit, torch.full_like(logit, target)) for logit in judged)


def is_source(cam_logit, target):
    return F.binary_cross_entropy_with_logits(cam_logit, torch.full_like(cam_logit, target))


def discriminator_loss(networks, A, B, settings):
    fake = {'A': networks['genB2A'](B)['fake'], 'B': networks['genA2B'](A)['fake']}
    return settings.dis_weight * sum(
        adversarial(networks[name](real), 1.0) + adversarial(networks[name](fake[domain]), 0.0)
        for domain, real in (('A', A), ('B', B)) for name in DISCRIMINATORS[domain])


def generator_losses(networks, A, B, settings):
    """The weighted terms by name."""
    a2b, b2a = networks['genA2B'], networks['genB2A']
    made = {'A': b2a(B), 'B': a2b(A)}  # by the domain they lead to
    back = {'A': b2a(made['B']['fake']), 'B': a2b(made['A']['fake'])}
    kept = {'A': b2a(A), 'B': a2b(B)}
    real = {'A': A, 'B': B}

    def distance(pictures):
        return sum(F.l1_loss(pictures[domain]['fake'], real[domain]) for domain in 'AB')

    terms = {
        'adversarial': settings.adv_weight * sum(
            adversarial(networks[name](made[domain][kind]), 1.0)
            for domain in 'AB' for name in DISCRIMINATORS[domain]
            for kind in ('fake', 'composite') if kind in made[domain]),
        'cycle': settings.cycle_weight * distance(back),
        'identity': settings.identity_weight * distance(kept),
        'class_attention': settings.cam_weight * sum(
            is_source(made[domain]['cam_logit'], 1.0) + is_source(kept[domain]['cam_logit'], 0.0)
            for domain in 'AB')}
    if settings.recon_weight:
        terms['recon'] = settings.recon_weight * (F.l1_loss(made['B']['recon'], A)
                                                  + F.l1_loss(made['A']['recon'], B))
    return terms


class PublishedTraining:
    """Networks, both optimisers and one step."""

    def __init__(self, settings, device='cpu'):
        self.settings = settings
        self.networks = build(settings).to(device)
        self.optimizers = {
            kind: torch.optim.Adam([parameter for name, network in self.networks.items()
                                    if name.startswith(kind) for parameter in network.parameters()],
                                   settings.lr, betas=(0.5, 0.999),
                                   weight_decay=settings.weight_decay) for kind in ('dis', 'gen')}

    def step(self, A, B):
        self.optimizers['dis'].zero_grad()
        loss = discriminator_loss(self.networks, A, B, self.settings)
        loss.backward()
        self.optimizers['dis'].step()

        self.optimizers['gen'].zero_grad()
        terms = generator_losses(self.networks, A, B, self.settings)
        total = sum(terms.values())
        total.backward()
        self.optimizers['gen'].step()
        for name, parameter in self.networks.named_parameters():
            if name.endswith('.rho'):
                parameter.data.clamp_(0, 1)
        return {'discriminator': loss.item(), 'generator': total.item(),
                **{name: term.item() for name, term in terms.items()}}
