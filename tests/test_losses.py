"""The losses against hand-computed values, and the training step against the published one."""
import math

import pytest
import torch
import torch.nn.functional as F

import losses
from networks import Judgement
from label_transfer import LabelTransfer


def test_adversarial_known_answer():
    judged = Judgement(torch.full((2, 1, 3, 3), 0.25), torch.full((2, 2), -1.0), None)
    assert losses.adversarial(judged, real=True) == pytest.approx(0.75 ** 2 + 2 ** 2)
    assert losses.adversarial(judged, real=False) == pytest.approx(0.25 ** 2 + 1)


def test_picture_distance_known_answer():
    assert losses.picture_distance(torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), -0.5)) == 0.5


def test_class_attention_known_answer():
    logit = torch.tensor([[0.0, 2.0]])
    softplus = [math.log(1 + math.exp(-value)) for value in (0, 2)]
    assert losses.class_attention(logit, True) == pytest.approx(sum(softplus) / 2)
    softplus = [math.log(1 + math.exp(value)) for value in (0, 2)]
    assert losses.class_attention(logit, False) == pytest.approx(sum(softplus) / 2)


def published_gradients(networks, A, B, settings):
    """The published step restated plainly: everything computed anew for each update, nothing
    detached that need not be. Returns gradients of the two losses by network and parameter."""
    first = settings.generation == 'first'
    a2b, b2a = networks['genA2B'], networks['genB2A']
    judges = {'A': (networks['disGA'], networks['disLA']),
              'B': (networks['disGB'], networks['disLB'])}

    def adversarial(network, picture, target):
        judged = network(picture)
        return sum(F.mse_loss(logit, torch.full_like(logit, target))
                   for logit in (judged.logit, judged.cam_logit))

    def to(logit, target):
        return F.binary_cross_entropy_with_logits(logit, torch.full_like(logit, target))

    def gradients(loss, names):
        parameters = {(name, key): parameter for name in names
                      for key, parameter in networks[name].named_parameters()}
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        return dict(zip(parameters, found))

    loss = 0
    fake_A, fake_B = b2a(B).fake, a2b(A).fake
    for domain, real, fake in (('A', A, fake_A), ('B', B, fake_B)):
        for judge in judges[domain]:
            loss = loss + adversarial(judge, real, 1.0) + adversarial(judge, fake, 0.0)
    result = gradients(settings.dis_weight * loss, ['disGA', 'disLA', 'disGB', 'disLB'])

    A2B, B2A = a2b(A), b2a(B)
    A2B2A = b2a(A2B.fake, A2B.fake.detach()) if first else b2a(A2B.fake)
    B2A2B = a2b(B2A.fake, B2A.fake.detach()) if first else a2b(B2A.fake)
    A2A, B2B = b2a(A), a2b(B)
    loss = 0
    for domain, made in (('A', B2A), ('B', A2B)):
        for judge in judges[domain]:
            loss = loss + settings.adv_weight * adversarial(judge, made.fake, 1.0)
            if not first:
                loss = loss + settings.adv_weight * adversarial(judge, made.composite, 1.0)
    loss = loss + settings.cycle_weight * (F.l1_loss(A2B2A.fake, A) + F.l1_loss(B2A2B.fake, B))
    loss = loss + settings.identity_weight * (F.l1_loss(A2A.fake, A) + F.l1_loss(B2B.fake, B))
    loss = loss + settings.cam_weight * (to(A2B.cam_logit, 1.0) + to(B2B.cam_logit, 0.0)
                                         + to(B2A.cam_logit, 1.0) + to(A2A.cam_logit, 0.0))
    if not first:
        loss = loss + settings.recon_weight * (F.l1_loss(A2B.recon, A) + F.l1_loss(B2A.recon, B))
    return result | gradients(loss, ['genA2B', 'genB2A'])


@pytest.mark.parametrize('generation', ['first', 'second'])
def test_the_step_has_the_published_gradients(generation, tiny_settings, monkeypatch):
    """On networks in evaluation mode: spectral norm's power iteration, which goes one step on
    with every call, stands still, so that both procedures see the same networks."""
    settings = tiny_settings(generation=generation, n_res=2)
    learner = LabelTransfer(settings, torch.device('cpu'))
    learner.networks.double().eval()
    monkeypatch.setattr(learner.networks, 'train', lambda mode=True: None)
    for optimizer in learner.optimizers.values():
        monkeypatch.setattr(optimizer, 'step', lambda: None)
    monkeypatch.setattr(torch.Tensor, 'float', lambda tensor: tensor)  # stay in double precision
    A, B = (torch.rand(2, 3, 32, 32, dtype=torch.float64) * 2 - 1 for _ in range(2))
    expected = published_gradients(learner.networks, A, B, settings)
    learner.step({'A': A, 'B': B}, 0)
    compared = 0
    for (network, key), gradient in expected.items():
        ours = dict(learner.networks[network].named_parameters())[key].grad
        assert (ours is None) == (gradient is None), f'{network}.{key}'
        if ours is not None:
            assert torch.allclose(ours, gradient, rtol=1e-6, atol=1e-9), f'{network}.{key}'
            compared += 1
    assert compared > 100
