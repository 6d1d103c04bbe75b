"""The losses, as pure functions on tensors: one formula each.

Notation: A disease, B normal; x a real image, G its generator, D a discriminator. Weights are
applied by the caller. Source: the published code (least-squares adversarial loss: Mao et al. 2017;
cycle: Zhu et al. 2017; class attention: Kim et al. 2020, U-GAT-IT), but where said."""
import torch
import torch.nn.functional as F
from torch import Tensor

from networks import DiscriminatorOutput


def adversarial(output: DiscriminatorOutput, real: bool) -> Tensor:
    """mean((D(x) − t)²) over the patches + the same over cam_logit, with t = 1 real, 0 fake. The
    discriminator uses it with the truth, the generator with real=True."""
    return sum(F.mse_loss(logit.float(), torch.full_like(logit, float(real)).float())
               for logit in (output.logit, output.cam_logit))


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """mean|prediction − target|, B×C×H×W each. The target is x, the prediction for cycle
    G_back(G(x)), for identity G(x) with x of the target domain, for reconstruction that of x."""
    return F.l1_loss(prediction.float(), target)


def class_attention(cam_logit: Tensor, source_domain: bool) -> Tensor:
    """Binary cross entropy of a generator's cam_logit B×2: 1 for images of the domain it translates
    from (there is something to change), 0 for images that already are in its target domain."""
    logit = cam_logit.float()
    return F.binary_cross_entropy_with_logits(logit, torch.full_like(logit, float(source_domain)))


def image_label(image_logit: Tensor, diseased: bool) -> Tensor:
    """Binary cross entropy of images, B logits: those of the localizer, pooled (ours)."""
    return F.binary_cross_entropy_with_logits(image_logit,
                                              torch.full_like(image_logit, float(diseased)))


def normal_pixels(logits: Tensor) -> Tensor:
    """Mean of −log(1 − sigmoid(z)) over all places of normal images, z: B×1×h×w logits (ours)."""
    return F.softplus(logits.float()).mean()


def cross_entropy(logit: Tensor, target: Tensor) -> Tensor:
    """Mean of −t·log p − (1−t)·log(1−p) with p = sigmoid(logit); B×1×H×W each, t in [0, 1]. For an
    empty batch 0."""
    loss = F.binary_cross_entropy_with_logits(logit.float(), target, reduction='none')
    return loss.sum() / max(1, loss.numel())


def dice(logit: Tensor, target: Tensor) -> Tensor:
    """Mean over images of 1 − (2·Σ p·t + 1) / (Σ (p + t) + 1) (Milletari et al. 2016); shapes and
    an empty batch as in `cross_entropy`."""
    if not len(logit):
        return logit.sum()
    p = torch.sigmoid(logit.float())
    both, either = (part.sum((1, 2, 3)) for part in (p * target, p + target))
    return (1 - (2 * both + 1) / (either + 1)).mean()
