"""The losses against hand-computed values, and the training step against the published one."""
import math

import pytest
import torch

import losses
from networks import Judgement
from label_transfer import LabelTransfer
import published


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


@pytest.mark.parametrize('generation', ['first', 'second'])
def test_the_step_has_the_published_losses_and_gradients(generation, tiny_settings, monkeypatch):
    """Against the plain restatement of the published networks and procedure, on networks in
    evaluation mode: spectral norm's power iteration, which goes one step on with every call,
    stands still, so that both see the same networks."""
    settings = tiny_settings(generation=generation, n_res=2, recipe='published')
    learner = LabelTransfer(settings, torch.device('cpu'))
    learner.networks.double().eval()
    plain = published.build(settings).double().eval()
    plain.load_state_dict(learner.networks.state_dict())
    A, B = (torch.rand(2, 3, 32, 32, dtype=torch.float64) * 2 - 1 for _ in range(2))

    ours = {}

    def keep_gradients():
        ours.update({name: parameter.grad.clone() for name, parameter
                     in learner.networks.named_parameters() if parameter.grad is not None})

    monkeypatch.setattr(learner.networks, 'train', lambda mode=True: None)
    for optimizer in learner.optimizers.values():
        monkeypatch.setattr(optimizer, 'step', keep_gradients)
    monkeypatch.setattr(torch.Tensor, 'float', lambda tensor: tensor)  # stay in double precision
    values = learner.step({'A': A, 'B': B}, 0)

    expected = {}
    terms = published.generator_losses(plain, A, B, settings)
    terms |= {'generator': sum(terms.values()),
              'discriminator': published.discriminator_loss(plain, A, B, settings)}
    for kind, loss in (('dis', terms['discriminator']), ('gen', terms['generator'])):
        parameters = {name: parameter for name, parameter in plain.named_parameters()
                      if name.startswith(kind)}
        expected |= dict(zip(parameters, torch.autograd.grad(
            loss, list(parameters.values()), allow_unused=True)))
    for name, term in terms.items():
        assert torch.allclose(values[name], term, rtol=1e-9), name
    assert ours.keys() == {name for name, gradient in expected.items() if gradient is not None}
    assert len(ours) > 100
    for name, gradient in ours.items():
        assert torch.allclose(gradient, expected[name], rtol=1e-6, atol=1e-9), name
