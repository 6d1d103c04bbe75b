"""EfficientNet-Lite0 (Tan and Le 2019), the default encoder of students. Architecture and names of
layers are those of timm's tf_efficientnet_lite0, so that its weights load. Built here, because
importing timm takes as long as importing torch, and most commands need nothing else of it."""
import itertools
import math

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

STAGES = (  # blocks, kernel, stride of the first block, expansion, channels
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))
FEATURES = (0, 1, 2, 4, 6)  # the last stages at strides 2, 4, 8, 16 and 32
EPSILON = 1e-3  # of batch normalization


class EfficientNetLite0(nn.Module):
    """The convolutions without the classifier, with random weights."""
    channels = tuple(STAGES[index][-1] for index in FEATURES)  # of the features, fine to coarse

    def __init__(self, img_ch: int) -> None:
        super().__init__()
        channels = 32
        self.conv_stem = SameConv(img_ch, channels, 3, 2)
        self.bn1 = nn.BatchNorm2d(channels, EPSILON)
        for _ in range(2):  # timm draws these numbers too: a seed gives the same student
            nn.Conv2d(8, 8, 1)
        self.blocks = nn.ModuleList()
        for count, kernel, stride, expansion, width in STAGES:
            stage = nn.Sequential()
            for _ in range(count):
                stage.append(DepthwiseBlock(channels, width, kernel, stride) if expansion == 1 else
                             InvertedResidual(channels, width, kernel, stride, expansion))
                channels, stride = width, 1
            self.blocks.append(stage)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * math.prod(module.kernel_size) // module.groups
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Images B×img_ch×H×W in [-1, 1] to features at strides 2, 4, 8, 16 and 32."""
        x = F.relu6(self.bn1(self.conv_stem(image)))
        features = []
        for index, stage in enumerate(self.blocks):
            x = stage(x)
            if index in FEATURES:
                features.append(x)
        return features

    def fold_normalization(self) -> None:
        """Make each batch normalization part of the convolution before it: the same features in
        evaluation mode, in a tenth less time. The layers then have other weights and names."""
        for module in list(self.modules()):
            for (conv_name, conv), (name, layer) in itertools.pairwise(module.named_children()):
                if isinstance(layer, nn.BatchNorm2d):
                    setattr(module, conv_name, fuse_conv_bn_eval(conv, layer))
                    setattr(module, name, nn.Identity())


class SameConv(nn.Conv2d):
    """A convolution without bias, padded as by TensorFlow: of an odd number of pixels one more at
    the end, so that at stride 2 the padding depends on the size of the image."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1,
                 groups: int = 1) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] > 1:
            missing = [max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
                       for side, stride, kernel in zip(x.shape[-2:], self.stride,
                                                       self.kernel_size, strict=True)]
            x = F.pad(x, [pad for total in missing[::-1] for pad in (total // 2, -(-total // 2))])
        return super().forward(x)


class DepthwiseBlock(nn.Module):
    """A depthwise and a pointwise convolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = SameConv(inputs, inputs, kernel, stride, inputs)
        self.bn1 = nn.BatchNorm2d(inputs, EPSILON)
        self.conv_pw = SameConv(inputs, outputs, 1)
        self.bn2 = nn.BatchNorm2d(outputs, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv_pw(F.relu6(self.bn1(self.conv_dw(x)))))


class InvertedResidual(nn.Module):
    """More channels, a depthwise convolution, fewer channels; the input is added where it fits."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int,
                 expansion: int) -> None:
        super().__init__()
        inner = expansion * inputs
        self.conv_pw = SameConv(inputs, inner, 1)
        self.bn1 = nn.BatchNorm2d(inner, EPSILON)
        self.conv_dw = SameConv(inner, inner, kernel, stride, inner)
        self.bn2 = nn.BatchNorm2d(inner, EPSILON)
        self.conv_pwl = SameConv(inner, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs, EPSILON)
        self.has_skip = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu6(self.bn1(self.conv_pw(x)))
        inner = F.relu6(self.bn2(self.conv_dw(inner)))
        output = self.bn3(self.conv_pwl(inner))
        return output + x if self.has_skip else output
