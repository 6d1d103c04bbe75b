"""The losses, as pure functions on tensors: one formula each.

Notation: A disease, B normal; x a real picture, G its generator, D a discriminator.
Weights are applied by the caller. Source: the published code (least-squares adversarial loss:
Mao et al. 2017; cycle: Zhu et al. 2017; class attention: Kim et al. 2020, U-GAT-IT).
"""
import math

import torch
import torch.nn.functional as F
from torch import Tensor


def adversarial(judgement, real: bool) -> Tensor:
    """mean((D(x) − t)²) over the patches + the same over cam_logit, with t = 1 real, 0 made.

    Used by both sides: the discriminator with the truth, the generator with real=True.
    """
    return sum(F.mse_loss(logit.float(), torch.full_like(logit, float(real)).float())
               for logit in (judgement.logit, judgement.cam_logit))


def picture_distance(made: Tensor, wanted: Tensor) -> Tensor:
    """mean|made − wanted|, B×C×H×W each.

    Cycle: wanted x, made G_back(G(x)). Identity: wanted x of the target domain, made G(x).
    Reconstruction: wanted x, made the reconstruction of x.
    """
    return F.l1_loss(made.float(), wanted)


def class_attention(cam_logit: Tensor, source_domain: bool) -> Tensor:
    """Binary cross entropy of a generator's cam_logit B×2.

    A generator's attention has to say 1 of pictures from the domain it translates from
    (there is something to change) and 0 of pictures that already are in its target domain.
    """
    logit = cam_logit.float()
    return F.binary_cross_entropy_with_logits(logit, torch.full_like(logit, float(source_domain)))


SHARPNESS = 5.0  # r of the pooling: 0 is the mean of all places, ∞ the most suspicious one


def pool(evidence: Tensor) -> Tensor:
    """(1/r)·log(mean exp(r·e)) of B×1×h×w evidence, B logits (Pinheiro and Collobert 2015)."""
    evidence = evidence.float().flatten(1)
    return (torch.logsumexp(SHARPNESS * evidence, 1) - math.log(evidence.shape[1])) / SHARPNESS


def image_label(evidence: Tensor, diseased: bool) -> Tensor:
    """Binary cross entropy of pictures by their pooled evidence, B×1×h×w logits."""
    pooled = pool(evidence)
    return F.binary_cross_entropy_with_logits(pooled, torch.full_like(pooled, float(diseased)))


def no_evidence(evidence: Tensor) -> Tensor:
    """Mean of −log(1 − sigmoid(e)) over all places of normal pictures, e: B×1×h×w logits."""
    return F.softplus(evidence.float()).mean()


def cross_entropy(logit: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Σ w·[−t·log p − (1−t)·log(1−p)] / Σ w with p = sigmoid(logit).

    All B×1×H×W, t and w in [0, 1].
    """
    loss = F.binary_cross_entropy_with_logits(logit.float(), target, reduction='none')
    return (weight * loss).sum() / weight.sum().clamp(min=1)


def dice(logit: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean over pictures of 1 − (2·Σ w·p·t + 1) / (Σ w·(p + t) + 1) (Milletari et al. 2016).

    B×1×H×W each, as in `cross_entropy`; 0 for an empty batch.
    """
    if not len(logit):
        return logit.sum()
    p = torch.sigmoid(logit.float())
    both, either = ((weight * part).sum((1, 2, 3)) for part in (p * target, p + target))
    return (1 - (2 * both + 1) / (either + 1)).mean()
