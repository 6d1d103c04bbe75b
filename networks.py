"""The networks: two generations of generators and the discriminator.

Notation in the shapes: B pictures, `ch` base channels, C = 4·ch channels at a quarter of the
picture's height H and width W. Pictures are in [-1, 1]. All convolutions pad by reflection.
Both generations are built from the same parts, in the order in which data meets them:

    encoder -> class attention -> AdaILN blocks (scale and shift from the attention) -> decoders

Source of every layer and default: the published code of the method (see README, Citation).
"""
import math
from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

from settings import GENERATORS, NETWORKS_OF, STUDENT_NETWORKS, Architecture

EPSILON = 1e-5  # inside every normalisation's square root


class Translation(NamedTuple):
    """Everything a generator makes of one batch of pictures."""

    fake: Tensor  # B×img_ch×H×W in [-1, 1], the picture in the other domain
    mask: Tensor  # B×1×H×W in [0, 1], where the picture may change: the soft lesion mask
    heatmap: Tensor  # B×1×H/4×W/4, channel sum of the attended features, any range
    cam_logit: Tensor  # B×2, class logits of the average and the maximum pool
    recon: Optional[Tensor]  # ≤B×img_ch×H×W in [-1, 1], the first pictures decoded without change
    content: Optional[Tensor] = None  # first generation: what the mask lets through
    composite: Optional[Tensor] = None  # second generation: mask·fake + (1−mask)·image


class MaskPrediction(NamedTuple):
    """What the short path through a generator makes: no translation."""

    mask: Tensor  # B×1×H×W in [0, 1]
    heatmap: Optional[Tensor] = None  # B×1×H/4×W/4; a student has none


class Judgement(NamedTuple):
    """What a discriminator says of one batch; 1 means real, 0 means made."""

    logit: Tensor  # B×1×h×w, one verdict a patch
    cam_logit: Tensor  # B×2
    heatmap: Tensor  # B×1×(h+1)×(w+1)


# ----------------------------------------------------------------------------- normalisations


def centre(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x B×C×H×W less each channel's mean over H,W, that mean, and the sum of the squares left.

    Sums rather than torch.var_mean, whose method takes a CPU several times as long; adding the
    negative mean rather than subtracting spares the backward pass a copy of the big tensor.
    """
    x = x.float()
    mean = x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3])
    centred = x + -mean
    return centred, mean, centred.square().sum((2, 3), keepdim=True)


def mix_instance_and_layer_norm(x: Tensor, rho: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """γ·(ρ·x̂_IN + (1−ρ)·x̂_LN) + β with unbiased variances, for x B×C×H×W.

    x̂_IN is normalised over H,W and x̂_LN over C,H,W. `rho` is 1×C×1×1; `gamma` and `beta` are
    1×C×1×1 or B×C×1×1. The layer's statistics follow from the channels' own, and the whole is
    one scale and one shift a channel.
    """
    channels, pixels = x.shape[1], x.shape[2] * x.shape[3]
    centred, mean, squares = centre(x)
    offset = mean - mean.mean(1, keepdim=True)  # of the channel's mean from the layer's
    layer_squares = (squares + pixels * offset ** 2).sum(1, keepdim=True)

    instance_part = rho * torch.rsqrt(squares / (pixels - 1) + EPSILON)
    layer_part = (1 - rho) * torch.rsqrt(layer_squares / (channels * pixels - 1) + EPSILON)
    scale = gamma * (instance_part + layer_part)
    shift = beta + gamma * layer_part * offset
    return torch.addcmul(shift, centred, scale).to(x.dtype)


class ILN(nn.Module):
    """Instance-layer normalisation with its own scale and shift."""

    def __init__(self, channels: int):
        super().__init__()
        self.rho = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return mix_instance_and_layer_norm(x, self.rho, self.gamma, self.beta)


class AdaILN(nn.Module):
    """Instance-layer normalisation whose scale and shift (B×C each) the caller gives."""

    def __init__(self, channels: int):
        super().__init__()
        self.rho = nn.Parameter(torch.full((1, channels, 1, 1), 0.9))

    def forward(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return mix_instance_and_layer_norm(
            x, self.rho, gamma[:, :, None, None], beta[:, :, None, None]
        )


def clip_rho(network: nn.Module) -> None:
    """Put every ρ back into [0, 1]; called after each generator step."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (ILN, AdaILN)):
                module.rho.clamp_(0, 1)


class InstanceNorm(nn.Module):
    """Instance normalisation without scale and shift; unlike torch's it keeps channels last."""

    def __init__(self, channels: int):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        centred, _, squares = centre(x)
        variance = squares / (x.shape[2] * x.shape[3])
        return (centred * torch.rsqrt(variance + EPSILON)).to(x.dtype)


# ------------------------------------------------------------------------------ shared parts


def reflect_conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the size at stride 1, padded by reflection."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2,
                     padding_mode='reflect' if kernel > 1 else 'zeros', bias=False)


class ConvBlock(nn.Module):
    """Convolution, normalisation, ReLU."""

    def __init__(self, in_channels, out_channels, kernel, norm, stride=1):
        super().__init__()
        self.conv = reflect_conv(in_channels, out_channels, kernel, stride)
        self.norm = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.norm(self.conv(x)))


class ResidualBlock(nn.Module):
    """x + [conv3, norm, ReLU, conv3, norm](x)."""

    def __init__(self, channels: int, norm=InstanceNorm):
        super().__init__()
        self.conv1 = reflect_conv(channels, channels, 3)
        self.norm1 = norm(channels)
        self.conv2 = reflect_conv(channels, channels, 3)
        self.norm2 = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        change = F.relu_(self.norm1(self.conv1(x)))
        return x + self.norm2(self.conv2(change))


class AdaILNBlock(nn.Module):
    """A residual block whose two normalisations take scale and shift from the attention."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = reflect_conv(channels, channels, 3)
        self.norm1 = AdaILN(channels)
        self.conv2 = reflect_conv(channels, channels, 3)
        self.norm2 = AdaILN(channels)

    def forward(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        change = F.relu_(self.norm1(self.conv1(x), gamma, beta))
        return x + self.norm2(self.conv2(change), gamma, beta)


class Encoder(nn.Module):
    """Pictures B×in_channels×H×W to features B×C×H/4×W/4."""

    def __init__(self, in_channels: int, ch: int, n_res: int):
        super().__init__()
        self.stem = ConvBlock(in_channels, ch, 7, InstanceNorm)
        self.to_half = ConvBlock(ch, 2 * ch, 3, InstanceNorm, stride=2)
        self.to_quarter = ConvBlock(2 * ch, 4 * ch, 3, InstanceNorm, stride=2)
        self.residual = nn.Sequential(*[ResidualBlock(4 * ch) for _ in range(n_res)])

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(self.to_quarter(self.to_half(self.stem(x))))


def unnormalised_weight(linear: nn.Linear) -> Tensor:
    """The weight before spectral norm, where there is one: the published code attends with it."""
    return linear.parametrizations.weight.original if is_parametrized(linear) else linear.weight


class ClassAttention(nn.Module):
    """Says whether the features look like the class, and weighs them by what says so.

    `wrap` is applied to the two linears (spectral norm in discriminators).
    Takes B×C×h×w; gives attended features B×C×h×w, cam_logit B×2, heatmap B×1×h×w.
    """

    def __init__(self, channels: int, activation: nn.Module, wrap=lambda layer: layer):
        super().__init__()
        self.average_logit = wrap(nn.Linear(channels, 1, bias=False))
        self.maximum_logit = wrap(nn.Linear(channels, 1, bias=False))
        self.merge = nn.Conv2d(2 * channels, channels, 1)
        self.activation = activation

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """B×C×h×w to attended features, cam_logit and heatmap."""
        pooled = {self.average_logit: F.adaptive_avg_pool2d(features, 1),
                  self.maximum_logit: F.adaptive_max_pool2d(features, 1)}
        logits = [linear(pool.flatten(1)) for linear, pool in pooled.items()]
        # merge(features·w_average beside features·w_maximum), the weights multiplied first
        weight = sum(part * unnormalised_weight(linear)[:, :, None, None] for linear, part
                     in zip(pooled, self.merge.weight.chunk(2, 1)))
        attended = self.activation(F.conv2d(features, weight, self.merge.bias))
        return attended, torch.cat(logits, 1), attended.sum(1, keepdim=True)


class ScaleShift(nn.Module):
    """γ and β (B×C each) of the AdaILN blocks, from the attended features B×C×h×w.

    Light looks at their global average; full at every value, which fixes the picture's size.
    """

    def __init__(self, channels: int, architecture: Architecture):
        super().__init__()
        height, width = architecture.size
        self.light = architecture.light
        inputs = channels if self.light else channels * (height // 4) * (width // 4)
        self.hidden = nn.Sequential(
            nn.Linear(inputs, channels, bias=False), nn.ReLU(),
            nn.Linear(channels, channels, bias=False), nn.ReLU())
        self.gamma = nn.Linear(channels, channels, bias=False)
        self.beta = nn.Linear(channels, channels, bias=False)

    def forward(self, attended: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.hidden(attended.mean((2, 3)) if self.light else attended.flatten(1))
        return self.gamma(hidden), self.beta(hidden)


def repeat_border(x: Tensor) -> Tensor:
    """B×C×H×W with its border pixels once more around it."""
    if torch.compiler.is_compiling():  # torch's own padding fails there with channels last
        x = torch.cat([x[:, :, :1], x, x[:, :, -1:]], 2)
        return torch.cat([x[..., :1], x, x[..., -1:]], 3)
    return F.pad(x, (1, 1, 1, 1), mode='replicate')


class EnlargingBlock(ConvBlock):
    """Nearest-neighbour enlargement ×2, 3×3 convolution padded by reflection, ILN, ReLU.

    Equal pixels meet summed weights, so enlargement and convolution are one transposed convolution
    with 4 products a pixel and channel in place of 9, and the enlarged input is never made.
    Reflected pixels of the enlarged picture are the border pixels of the small one.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, ILN)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.norm(self.enlarge_and_convolve(x)))

    def enlarge_and_convolve(self, x: Tensor) -> Tensor:
        turned = self.conv.weight.flip(2, 3).transpose(0, 1)  # as a transposed convolution has it
        kernel = 4 * F.avg_pool2d(turned, 2, stride=1, padding=1)  # 4×4, of sums over 2×2
        return F.conv_transpose2d(repeat_border(x), kernel, stride=2, padding=3)


class PictureConv(nn.Conv2d):
    """A convolution to the few channels of a picture, padded by reflection, 2×2 pixels at a time.

    The four pixels of a block are four output channels of a convolution with stride 2 and a kernel
    one pixel larger. On a CPU that halves the time: the vector units fill with channels.
    """

    BLOCK = 2

    def __init__(self, in_channels: int, out_channels: int, kernel: int):
        super().__init__(in_channels, out_channels, kernel, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        last = self.BLOCK - 1
        kernel = torch.stack([F.pad(self.weight, (column, last - column, row, last - row))
                              for row in range(self.BLOCK) for column in range(self.BLOCK)], 1)
        x = F.pad(x, [self.kernel_size[0] // 2] * 4, mode='reflect')
        return F.pixel_shuffle(F.conv2d(x, kernel.flatten(0, 1), stride=self.BLOCK), self.BLOCK)


class Decoder(nn.Module):
    """Features B×C×H/4×W/4 to B×out_channels×H×W."""

    def __init__(self, channels: int, out_channels: int, kernel: int, activation):
        super().__init__()
        self.to_half = EnlargingBlock(channels, channels // 2)
        self.to_full = EnlargingBlock(channels // 2, channels // 4)
        self.output = PictureConv(channels // 4, out_channels, kernel)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.output(self.to_full(self.to_half(x))))


# -------------------------------------------------------------------------------- generators


def check_multiple_of_4(image: Tensor) -> None:
    height, width = image.shape[-2:]
    if height % 4 or width % 4:
        raise ValueError(f'pictures of {height}×{width}: height and width must be multiples of 4')


def reconstruct(decoder: Decoder, features: Tensor, count: Optional[int]) -> Optional[Tensor]:
    """The first `count` pictures (all if None) decoded; None of none."""
    return None if count == 0 else decoder(features[:count])


class FirstGenerator(nn.Module):
    """First generation: the mask has a decoder of its own and confines the change."""

    def __init__(self, architecture: Architecture):
        super().__init__()
        ch, n_res, img_ch = architecture.ch, architecture.n_res, architecture.img_ch
        channels = 4 * ch
        self.encoder = Encoder(2 * img_ch, ch, n_res)
        self.attention_residual = nn.Sequential(*[ResidualBlock(channels) for _ in range(2)])
        self.class_attention = ClassAttention(channels, nn.ReLU())
        self.mask_decoder = Decoder(channels, 1, 7, torch.sigmoid)
        self.scale_shift = ScaleShift(channels, architecture)
        self.translation_blocks = nn.ModuleList([AdaILNBlock(channels) for _ in range(n_res)])
        self.content_decoder = Decoder(channels, img_ch, 7, torch.tanh)
        self.recon_decoder = Decoder(channels, img_ch, 7, torch.tanh)

    def forward(self, image: Tensor, companion: Optional[Tensor] = None,
                recon_of: Optional[int] = None) -> Translation:
        """Translate B×img_ch×H×W pictures.

        `companion` is the second picture the encoder sees, of the same shape and range; without
        one it is the image itself, and no gradient goes back through it (as published).
        The reconstruction costs a decoder: `recon_of` says of how many pictures, from the first
        on, it is made (all by default).
        """
        features = self.encode(image, companion)
        attended, cam_logit, heatmap = self.attend(features)
        mask = self.mask_decoder(attended)

        gamma, beta = self.scale_shift(attended)
        x = features
        for block in self.translation_blocks:
            x = block(x, gamma, beta)
        content = self.content_decoder(x)
        fake = mask * content + (1 - mask) * image
        return Translation(fake=fake, mask=mask, heatmap=heatmap, cam_logit=cam_logit,
                           recon=reconstruct(self.recon_decoder, features, recon_of),
                           content=content)

    def predict_mask(self, image: Tensor, companion: Optional[Tensor] = None) -> MaskPrediction:
        """The mask and heatmap of `forward`, running only the layers they need."""
        attended, _, heatmap = self.attend(self.encode(image, companion))
        return MaskPrediction(self.mask_decoder(attended), heatmap)

    def encode(self, image: Tensor, companion: Optional[Tensor]) -> Tensor:
        check_multiple_of_4(image)
        companion = image.detach() if companion is None else companion
        return self.encoder(torch.cat([image, companion], 1))

    def attend(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.class_attention(self.attention_residual(features))


class SecondGenerator(nn.Module):
    """Second generation: translation and reconstruction run beside each other, and the
    quarter-size mask decides at every block which of the two goes on."""

    def __init__(self, architecture: Architecture):
        super().__init__()
        ch, n_res, img_ch = architecture.ch, architecture.n_res, architecture.img_ch
        channels = 4 * ch
        self.encoder = Encoder(img_ch, ch, n_res)
        self.split = nn.Sequential(*[ConvBlock(channels, channels, 1, ILN) for _ in range(2)])
        self.class_attention = ClassAttention(channels, nn.ReLU())
        self.mask_output = reflect_conv(channels, 1, 3)
        self.scale_shift = ScaleShift(channels, architecture)
        self.recon_blocks = nn.ModuleList([ResidualBlock(channels, ILN) for _ in range(n_res)])
        self.translation_blocks = nn.ModuleList([AdaILNBlock(channels) for _ in range(n_res)])
        self.fake_decoder = Decoder(channels, img_ch, 3, torch.tanh)
        self.recon_decoder = Decoder(channels, img_ch, 7, torch.tanh)

    def forward(self, image: Tensor, recon_of: Optional[int] = None) -> Translation:
        """Translate B×img_ch×H×W pictures, and reconstruct the first `recon_of` (all by default)."""
        features = self.encode(image)
        attended, cam_logit, heatmap = self.class_attention(self.split(features))
        small_mask = torch.sigmoid(self.mask_output(attended))

        gamma, beta = self.scale_shift(attended)
        x, r = attended, features
        for recon_block, translation_block in zip(self.recon_blocks, self.translation_blocks):
            r = recon_block(r)
            x = small_mask * translation_block(x, gamma, beta) + (1 - small_mask) * r
        fake = self.fake_decoder(x)
        mask = self.enlarge(small_mask)
        return Translation(fake=fake, mask=mask, heatmap=heatmap, cam_logit=cam_logit,
                           recon=reconstruct(self.recon_decoder, r, recon_of),
                           composite=mask * fake + (1 - mask) * image)

    def predict_mask(self, image: Tensor) -> MaskPrediction:
        """The mask and heatmap of `forward`, running only the layers they need."""
        attended, _, heatmap = self.class_attention(self.split(self.encode(image)))
        return MaskPrediction(self.enlarge(torch.sigmoid(self.mask_output(attended))), heatmap)

    def encode(self, image: Tensor) -> Tensor:
        check_multiple_of_4(image)
        return self.encoder(image)

    @staticmethod
    def enlarge(small_mask: Tensor) -> Tensor:
        for _ in range(2):
            small_mask = F.interpolate(small_mask, scale_factor=2, mode='bilinear',
                                       align_corners=True)
        return small_mask


# ----------------------------------------------------------------------------- discriminator


class Discriminator(nn.Module):
    """Tells real pictures from made ones, patch by patch.

    `depth` L = 7 looks at large patches (global), L = 5 at smaller ones (local). Convolutions
    and the linears of the attention carry spectral norm.
    """

    def __init__(self, depth: int, architecture: Architecture, wrap=spectral_norm):
        super().__init__()

        def conv(in_channels, out_channels, stride, bias=True):
            return wrap(nn.Conv2d(in_channels, out_channels, 4, stride, padding=1,
                                           padding_mode='reflect', bias=bias))

        leaky = nn.LeakyReLU(0.2, inplace=True)
        layers = [conv(architecture.img_ch, architecture.ch, 2), leaky]
        channels = architecture.ch
        for stride in [2] * (depth - 3) + [1]:
            layers += [conv(channels, 2 * channels, stride), leaky]
            channels *= 2
        self.features = nn.Sequential(*layers)
        self.class_attention = ClassAttention(channels, leaky, wrap)
        self.output = conv(channels, 1, 1, bias=False)

    def forward(self, image: Tensor) -> Judgement:
        """Judge pictures B×img_ch×H×W in [-1, 1]."""
        attended, cam_logit, heatmap = self.class_attention(self.features(image))
        return Judgement(self.output(attended), cam_logit, heatmap)


# ----------------------------------------------------------------------------------- locator


class BatchNormBlock(nn.Module):
    """Convolution 3×3, batch normalisation, ReLU. With stride 2 the kernel is 4×4, so that a value
    lies in the middle of the pixels it stands for."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 2 + stride, stride, padding=1,
                              padding_mode='reflect', bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.norm(self.conv(x)))


class Locator(nn.Module):
    """Stage 0: says where a picture looks diseased, taught by image labels alone.

    A plain classifier at a quarter of the picture's size, with batch normalisation: instance
    normalisation, as in the generators' class attention, takes the brightness of a lesion away.
    """

    def __init__(self, architecture: Architecture):
        super().__init__()
        ch = architecture.ch
        self.to_half = BatchNormBlock(architecture.img_ch, ch, stride=2)
        self.at_half = BatchNormBlock(ch, 2 * ch)
        self.to_quarter = BatchNormBlock(2 * ch, 4 * ch, stride=2)
        self.at_quarter = nn.Sequential(*[BatchNormBlock(4 * ch, 4 * ch) for _ in range(4)])
        self.output = nn.Conv2d(4 * ch, 1, 1)
        self.register_buffer('normal_level', torch.zeros(()))  # usual evidence in normal pictures
        self.register_buffer('no_side_is_up', torch.tensor(False))  # of pictures it learned from

    def forward(self, image: Tensor) -> Tensor:
        """Pictures B×img_ch×H×W in [-1, 1] to evidence of disease, logits B×1×H/4×W/4."""
        return self.output(self.features(image))

    def features(self, image: Tensor) -> Tensor:
        """What the evidence is read off, B×4·ch×H/4×W/4."""
        return self.at_quarter(self.to_quarter(self.at_half(self.to_half(image))))

    def predict_mask(self, image: Tensor) -> MaskPrediction:
        """The evidence between its usual level in normal pictures (0) and its maximum in this one
        (1). It is taken for granted that the picture is diseased."""
        evidence = self.evidence_over_views(image)
        above = (evidence - self.normal_level).clamp(min=0)
        height = above / above.amax((1, 2, 3), keepdim=True).clamp(min=EPSILON)
        mask = F.interpolate(height, size=image.shape[-2:], mode='bilinear', align_corners=False)
        return MaskPrediction(mask, evidence)

    def evidence_over_views(self, image: Tensor) -> Tensor:
        """Mean evidence over the mirrored picture and, where no side is up, over quarter turns: a
        locator lights one side of a lesion most, and that cancels."""
        views = []
        for turns in range(4 if self.no_side_is_up else 1):
            for mirrored in (False, True):
                view = image.rot90(turns, (2, 3))
                evidence = self((view.flip(3) if mirrored else view).contiguous(
                    memory_format=torch.channels_last)).float()
                views.append((evidence.flip(3) if mirrored else evidence).rot90(-turns, (2, 3)))
        return torch.stack(views).mean(0)


# ----------------------------------------------------------------------------------- student


class DoubleConv(nn.Module):
    """Twice: convolution 3×3, group normalisation, leaky ReLU.

    Leaky, because lesions are few pixels: while the network first learns that most of a picture is
    none, plain ReLUs that speak for lesions die.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        groups = math.gcd(4, out_channels)
        self.layers = nn.Sequential(*[
            layer for inputs in (in_channels, out_channels)
            for layer in (reflect_conv(inputs, out_channels, 3),
                          nn.GroupNorm(groups, out_channels), nn.LeakyReLU(0.1))])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class SegmentationNetwork(nn.Module):
    """The student of stage 2 that starts anew: a compact U-Net (Ronneberger et al. 2015), four halvings deep."""

    DEPTH = 4

    def __init__(self, architecture: Architecture):
        super().__init__()
        widths = [architecture.ch * 2 ** min(level, 3) for level in range(self.DEPTH + 1)]
        self.stem = DoubleConv(architecture.img_ch, widths[0])
        self.down = nn.ModuleList([DoubleConv(above, below)
                                   for above, below in zip(widths, widths[1:])])
        self.up = nn.ModuleList([DoubleConv(below + above, above)
                                 for above, below in reversed([*zip(widths, widths[1:])])])
        self.output = nn.Conv2d(widths[0], 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Pictures B×img_ch×H×W in [-1, 1] to lesion logits B×1×H×W."""
        x = self.stem(image)
        skipped = []
        for layer in self.down:
            skipped.append(x)
            x = layer(F.max_pool2d(x, 2))
        for layer in self.up:
            beside = skipped.pop()
            x = F.interpolate(x, size=beside.shape[-2:], mode='bilinear', align_corners=False)
            x = layer(torch.cat([x, beside], 1))
        return self.output(x)

    def predict_mask(self, image: Tensor) -> MaskPrediction:
        return MaskPrediction(torch.sigmoid(self(image).float()))


class WideBlock(nn.Module):
    """Adds to each place what lies `distance` places around it; nothing, before it has learned."""

    def __init__(self, channels: int, distance: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=distance, dilation=distance,
                              padding_mode='replicate', bias=False)
        self.norm = nn.GroupNorm(math.gcd(4, channels), channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.conv(x)))


class LocatorStudent(nn.Module):
    """The student of stage 2 that goes on from the locator: it has seen what tells disease from normal
    pictures, and now looks farther around, to fill what the locator lights at its rim alone."""

    DISTANCES = (3, 6, 9)  # places of a quarter of the size

    def __init__(self, architecture: Architecture):
        super().__init__()
        self.locator = Locator(architecture)
        self.around = nn.Sequential(*[WideBlock(4 * architecture.ch, distance)
                                      for distance in self.DISTANCES])

    def train(self, mode: bool = True):
        """The locator's normalisation stays as stage 0 left it: statistics of few pictures would mix
        them, and differ between processes."""
        super().train(mode)
        self.locator.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Pictures B×img_ch×H×W in [-1, 1] to lesion logits B×1×H×W."""
        logit = self.locator.output(self.around(self.locator.features(image)))
        return F.interpolate(logit, size=image.shape[-2:], mode='bilinear', align_corners=False)

    def predict_mask(self, image: Tensor) -> MaskPrediction:
        return MaskPrediction(torch.sigmoid(self(image).float()))


def build_networks(architecture: Architecture, names=None, wrap=spectral_norm) -> nn.ModuleDict:
    """The networks of a scheme (or those named), freshly initialised: the published six, the
    locator, or the student's. `wrap` is applied to the discriminators' layers."""
    generator = {'first': FirstGenerator, 'second': SecondGenerator}[architecture.generation]
    depth = {'disG': architecture.n_dis + 1, 'disL': architecture.n_dis - 1}
    if names is None:
        names = NETWORKS_OF[architecture.scheme]

    def build(name):
        if name == 'locator':
            return Locator(architecture)
        if name in STUDENT_NETWORKS:
            student = {'unet': SegmentationNetwork, 'locator': LocatorStudent}
            return student[architecture.student](architecture)
        return (generator(architecture) if name in GENERATORS
                else Discriminator(depth[name[:4]], architecture, wrap))

    return nn.ModuleDict({name: build(name) for name in names})


def make_ready(networks: nn.ModuleDict, settings, device: torch.device) -> nn.ModuleDict:
    """The networks on their device, laid out and compiled as is fastest there.

    Channels last on a CPU (a sixth less time) and for bfloat16, whose kernels work that way.
    """
    channels_last = device.type == 'cpu' or settings.amp
    networks.to(device, memory_format=torch.channels_last if channels_last
                else torch.contiguous_format)
    if settings.compile:
        # six networks of two kinds, with and without gradients, at several batch sizes
        torch._dynamo.config.cache_size_limit = 64
        for network in networks.values():
            network.compile()
            if hasattr(network, 'predict_mask'):
                network.predict_mask = torch.compile(network.predict_mask)
    return networks
