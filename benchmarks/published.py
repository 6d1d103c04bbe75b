"""The published method restated plainly: the yardstick of speed and the check of exactness.

The same networks (and parameter names) as `networks.py` and the same training step as
`stages/label_transfer.py`, but computed the way the published code does it: reflection padding as
a pass of its own, both variances of every normalization from the features, every decoder run, one
image pair after the other through each generator, every translation computed once for the
discriminators and again for the generators, and nothing detached that need not be."""
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from config import Config
from networks import ScaleShift

EPSILON = 1e-5
Norm = Callable[[int], nn.Module]  # channels -> a normalization layer
DISCRIMINATORS = {'A': ('disGA', 'disLA'), 'B': ('disGB', 'disLB')}


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, bias=False)


def padded(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return layer(F.pad(x, [layer.kernel_size[0] // 2] * 4, mode='reflect'))


def normalize(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    mean, variance = x.mean(dims, keepdim=True), x.var(dims, keepdim=True)
    return (x - mean) / torch.sqrt(variance + EPSILON)


def instance_layer_norm(x: Tensor, rho: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Instance and layer normalization mixed by rho, then scaled and shifted."""
    return (rho * normalize(x, (2, 3)) + (1 - rho) * normalize(x, (1, 2, 3))) * gamma + beta


class ILN(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rho, self.gamma, self.beta = (
            nn.Parameter(torch.full((1, channels, 1, 1), start)) for start in (0.0, 1.0, 0.0))

    def forward(self, x: Tensor) -> Tensor:
        return instance_layer_norm(x, self.rho, self.gamma, self.beta)


class AdaILN(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rho = nn.Parameter(torch.full((1, channels, 1, 1), 0.9))

    def forward(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return instance_layer_norm(x, self.rho, gamma[:, :, None, None], beta[:, :, None, None])


class ConvBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, kernel: int, norm: Norm,
                 stride: int = 1) -> None:
        super().__init__()
        self.conv = conv(in_channels, out_channels, kernel, stride)
        self.norm = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(padded(self.conv, x)))


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, norm: Norm = nn.InstanceNorm2d) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(channels, channels, 3), norm(channels)
        self.conv2, self.norm2 = conv(channels, channels, 3), norm(channels)

    def forward(self, x: Tensor, *scale_shift: Tensor) -> Tensor:
        change = F.relu(self.norm1(padded(self.conv1, x), *scale_shift))
        return x + self.norm2(padded(self.conv2, change), *scale_shift)


class Encoder(nn.Module):
    def __init__(self, in_channels: int, ch: int, n_res: int) -> None:
        super().__init__()
        self.stem = ConvBlock(in_channels, ch, 7, nn.InstanceNorm2d)
        self.to_half = ConvBlock(ch, 2 * ch, 3, nn.InstanceNorm2d, 2)
        self.to_quarter = ConvBlock(2 * ch, 4 * ch, 3, nn.InstanceNorm2d, 2)
        self.residual = nn.Sequential(*[ResidualBlock(4 * ch) for _ in range(n_res)])

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(self.to_quarter(self.to_half(self.stem(x))))


class ClassAttention(nn.Module):
    def __init__(self, channels: int, activation: Callable[[Tensor], Tensor],
                 wrap: Callable[[nn.Module], nn.Module] = lambda layer: layer) -> None:
        super().__init__()
        self.average_logit = wrap(nn.Linear(channels, 1, bias=False))
        self.maximum_logit = wrap(nn.Linear(channels, 1, bias=False))
        self.merge = nn.Conv2d(2 * channels, channels, 1)
        self.activation = activation

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features B×C×h×w to attended features, class logits B×2, heatmap B×1×h×w."""
        logits, weighted = [], []
        for linear, pool in ((self.average_logit, F.adaptive_avg_pool2d),
                             (self.maximum_logit, F.adaptive_max_pool2d)):
            logits.append(linear(pool(features, 1).flatten(1)))
            weight = (linear.parametrizations.weight.original
                      if hasattr(linear, 'parametrizations') else linear.weight)
            weighted.append(features * weight[:, :, None, None])
        attended = self.activation(self.merge(torch.cat(weighted, 1)))
        return attended, torch.cat(logits, 1), attended.sum(1, keepdim=True)


class Decoder(nn.Module):
    def __init__(self, channels: int, out_channels: int, kernel: int,
                 activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.to_half = ConvBlock(channels, channels // 2, 3, ILN)
        self.to_full = ConvBlock(channels // 2, channels // 4, 3, ILN)
        self.output = conv(channels // 4, out_channels, kernel)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.to_half(F.interpolate(x, scale_factor=2))
        x = self.to_full(F.interpolate(x, scale_factor=2))
        return self.activation(padded(self.output, x))


class FirstGenerator(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        ch, n_res = config.ch, config.n_res
        channels = 4 * ch
        self.encoder = Encoder(6, ch, n_res)
        self.attention_residual = nn.Sequential(*[ResidualBlock(channels) for _ in range(2)])
        self.class_attention = ClassAttention(channels, nn.ReLU())
        self.mask_decoder = Decoder(channels, 1, 7, torch.sigmoid)
        self.scale_shift = ScaleShift(channels, config)
        self.translation_blocks = nn.ModuleList([ResidualBlock(channels, AdaILN)
                                                 for _ in range(n_res)])
        self.content_decoder = Decoder(channels, 3, 7, torch.tanh)
        self.recon_decoder = Decoder(channels, 3, 7, torch.tanh)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Images B×3×H×W in [-1, 1] to everything computed of them, by name."""
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
    def __init__(self, config: Config) -> None:
        super().__init__()
        ch, n_res = config.ch, config.n_res
        channels = 4 * ch
        self.encoder = Encoder(3, ch, n_res)
        self.split = nn.Sequential(*[ConvBlock(channels, channels, 1, ILN) for _ in range(2)])
        self.class_attention = ClassAttention(channels, nn.ReLU())
        self.mask_output = conv(channels, 1, 3)
        self.scale_shift = ScaleShift(channels, config)
        self.recon_blocks = nn.ModuleList([ResidualBlock(channels, ILN) for _ in range(n_res)])
        self.translation_blocks = nn.ModuleList([ResidualBlock(channels, AdaILN)
                                                 for _ in range(n_res)])
        self.fake_decoder = Decoder(channels, 3, 3, torch.tanh)
        self.recon_decoder = Decoder(channels, 3, 7, torch.tanh)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Images B×3×H×W in [-1, 1] to everything computed of them, by name."""
        features = self.encoder(image)
        attended, cam_logit, _ = self.class_attention(self.split(features))
        mask = torch.sigmoid(padded(self.mask_output, attended))
        x, r, scale_shift = attended, features, self.scale_shift(attended)
        for recon_block, block in zip(self.recon_blocks, self.translation_blocks, strict=True):
            r = recon_block(r)
            x = mask * block(x, *scale_shift) + (1 - mask) * r
        fake = self.fake_decoder(x)
        for _ in range(2):
            mask = F.interpolate(mask, scale_factor=2, mode='bilinear', align_corners=True)
        return {'fake': fake, 'mask': mask, 'cam_logit': cam_logit,
                'composite': mask * fake + (1 - mask) * image, 'recon': self.recon_decoder(r)}


class Discriminator(nn.Module):
    def __init__(self, depth: int, ch: int) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, stride: int, bias: bool = True) -> nn.Module:
            return spectral_norm(nn.Conv2d(inputs, outputs, 4, stride, bias=bias))

        leaky = nn.LeakyReLU(0.2)
        layers = [layer(3, ch, 2), leaky]
        for index, stride in enumerate([2] * (depth - 3) + [1]):
            layers += [layer(ch * 2 ** index, ch * 2 ** (index + 1), stride), leaky]
        self.features = nn.Sequential(*layers)
        channels = ch * 2 ** (depth - 2)
        self.class_attention = ClassAttention(channels, leaky, spectral_norm)
        self.output = layer(channels, 1, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                x = F.pad(x, [1] * 4, mode='reflect')
            x = layer(x)
        attended, cam_logit, _ = self.class_attention(x)
        return self.output(F.pad(attended, [1] * 4, mode='reflect')), cam_logit


def build(config: Config) -> nn.ModuleDict:
    """The six networks (light, for color images), by the names of `networks.py`."""
    generator = {'first': FirstGenerator, 'second': SecondGenerator}[config.generation]
    depth = {'G': config.n_dis + 1, 'L': config.n_dis - 1}
    networks = {name: generator(config) for name in ('genA2B', 'genB2A')}
    return nn.ModuleDict(networks | {name: Discriminator(depth[name[3]], config.ch)
                                     for names in DISCRIMINATORS.values() for name in names})


def adversarial(outputs: tuple[Tensor, Tensor], target: float) -> Tensor:
    """Least squares on both outputs of a discriminator: the map and the class logits."""
    return sum(F.mse_loss(logit, torch.full_like(logit, target)) for logit in outputs)


def class_attention(cam_logit: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(cam_logit, torch.full_like(cam_logit, target))


def discriminator_loss(networks: nn.ModuleDict, A: Tensor, B: Tensor, config: Config) -> Tensor:
    """The weighted loss of all four, of images A and B, N×3×H×W in [-1, 1]."""
    fake = {'A': networks['genB2A'](B)['fake'], 'B': networks['genA2B'](A)['fake']}
    return config.dis_weight * sum(
        adversarial(networks[name](real), 1.0) + adversarial(networks[name](fake[domain]), 0.0)
        for domain, real in (('A', A), ('B', B)) for name in DISCRIMINATORS[domain])


def generator_losses(networks: nn.ModuleDict, A: Tensor, B: Tensor,
                     config: Config) -> dict[str, Tensor]:
    """The weighted terms by name, of images A and B, N×3×H×W in [-1, 1]."""
    a2b, b2a = networks['genA2B'], networks['genB2A']
    translated = {'A': b2a(B), 'B': a2b(A)}  # by target domain
    back = {'A': b2a(translated['B']['fake']), 'B': a2b(translated['A']['fake'])}
    identity = {'A': b2a(A), 'B': a2b(B)}
    real = {'A': A, 'B': B}

    def distance(outputs: dict[str, dict[str, Tensor]]) -> Tensor:
        return sum(F.l1_loss(outputs[domain]['fake'], real[domain]) for domain in 'AB')

    terms = {
        'adversarial': config.adv_weight * sum(
            adversarial(networks[name](translated[domain][kind]), 1.0)
            for domain in 'AB' for name in DISCRIMINATORS[domain]
            for kind in ('fake', 'composite') if kind in translated[domain]),
        'cycle': config.cycle_weight * distance(back),
        'identity': config.identity_weight * distance(identity),
        'class_attention': config.cam_weight * sum(
            class_attention(translated[domain]['cam_logit'], 1.0)
            + class_attention(identity[domain]['cam_logit'], 0.0)
            for domain in 'AB')}
    if config.recon_weight:
        terms['recon'] = config.recon_weight * (F.l1_loss(translated['B']['recon'], A)
                                                + F.l1_loss(translated['A']['recon'], B))
    return terms


class PublishedTraining:
    """Networks, both optimizers and one step."""

    def __init__(self, config: Config, device: torch.device | str = 'cpu') -> None:
        self.config = config
        self.networks = build(config).to(device)
        self.optimizers = {
            kind: torch.optim.Adam([parameter for name, network in self.networks.items()
                                    if name.startswith(kind) for parameter in network.parameters()],
                                   config.lr, betas=(0.5, 0.999),
                                   weight_decay=config.weight_decay) for kind in ('dis', 'gen')}

    def step(self, A: Tensor, B: Tensor) -> dict[str, float]:
        """One iteration on images N×3×H×W in [-1, 1]; the losses by name."""
        self.optimizers['dis'].zero_grad()
        loss = discriminator_loss(self.networks, A, B, self.config)
        loss.backward()
        self.optimizers['dis'].step()

        self.optimizers['gen'].zero_grad()
        terms = generator_losses(self.networks, A, B, self.config)
        total = sum(terms.values())
        total.backward()
        self.optimizers['gen'].step()
        for name, parameter in self.networks.named_parameters():
            if name.endswith('.rho'):
                parameter.data.clamp_(0, 1)
        return {'discriminator': loss.item(), 'generator': total.item(),
                **{name: term.item() for name, term in terms.items()}}
