"""The step of label transfer against the published one, and the teacher's part in it."""
import pytest
import torch

import published
from helpers import training_batch
from inference import refinement
from stages.label_transfer import LabelTransferStage

CPU = torch.device('cpu')


@pytest.mark.parametrize('generation', ['first', 'second'])
def test_the_step_has_the_published_losses_and_gradients(generation, tiny_config, monkeypatch):
    """Against the plain restatement of the published networks and procedure, on networks in
    evaluation mode: spectral norm's power iteration, which advances with every call, stands still,
    so that both see the same networks."""
    config = tiny_config(generation=generation, n_res=2, recipe='published')
    stage = LabelTransferStage(config, CPU)
    stage.networks.double().eval()
    plain = published.build(config).double().eval()
    plain.load_state_dict(stage.networks.state_dict())
    A, B = (torch.rand(2, 3, 32, 32, dtype=torch.float64) * 2 - 1 for _ in range(2))
    gradients = {}

    def keep_gradients():
        gradients.update({name: parameter.grad.clone() for name, parameter
                          in stage.networks.named_parameters() if parameter.grad is not None})
    monkeypatch.setattr(stage.networks, 'train', lambda mode=True: None)
    for optimizer in stage.optimizers.values():
        monkeypatch.setattr(optimizer, 'step', keep_gradients)
    monkeypatch.setattr(torch.Tensor, 'float', lambda tensor: tensor)  # stay in double precision
    values = stage.step({'A': A, 'B': B}, 0).losses
    terms = published.generator_losses(plain, A, B, config)
    terms |= {'generator': sum(terms.values()),
              'discriminator': published.discriminator_loss(plain, A, B, config)}
    for name, term in terms.items():
        assert torch.allclose(values[name], term, rtol=1e-9), name
    expected = {}
    for kind in ('discriminator', 'generator'):
        parameters = {name: parameter for name, parameter in plain.named_parameters()
                      if name.startswith(kind[:3])}
        of_kind = torch.autograd.grad(terms[kind], [*parameters.values()], allow_unused=True)
        expected |= {name: gradient for name, gradient in zip(parameters, of_kind, strict=True)
                     if gradient is not None}
    assert gradients.keys() == expected.keys() and len(gradients) > 100
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, expected[name], rtol=1e-6, atol=1e-9), name


def test_the_localization_map_teaches_the_mask_in_our_recipe_alone(tiny_config, monkeypatch):
    monkeypatch.setattr(refinement, 'refine', None)  # what teaches is not refined
    stage = LabelTransferStage(tiny_config(batch_size=2, lr=5.0), CPU)
    losses = stage.step(training_batch(), 0).losses
    assert losses['localization'] > 0 and losses['normal_mask'] > 0
    rhos = [parameter for name, parameter in stage.networks.named_parameters()
            if name.endswith('rho')]
    assert rhos and all(0 <= rho.min() and rho.max() <= 1 for rho in rhos)  # steps clip them


def test_published_stages_see_the_mask_as_second_image_or_not_at_all(tiny_config):
    cycle, batch = [], training_batch()
    for number, mask in ((1, batch['mask']), (2, batch['mask']), (2, -batch['mask'])):
        torch.manual_seed(0)
        config = tiny_config(stage=number, recipe='published', batch_size=2)
        losses = dict(LabelTransferStage(config, CPU).step(batch | {'mask': mask}, 0).losses)
        assert losses['localization'] == losses['normal_mask'] == 0
        cycle.append(losses['cycle'].item())
        del losses['discriminator']
        generator = losses.pop('generator')  # to which the weighted terms add up
        assert torch.allclose(sum(losses.values()), generator)
    assert len(set(cycle)) == 3
