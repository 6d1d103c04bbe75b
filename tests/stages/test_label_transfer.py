"""The step of label transfer against the published one, and the teacher's part in it."""
import dataclasses

import pytest
import torch

import published
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

    expected = {}
    terms = published.generator_losses(plain, A, B, config)
    terms |= {'generator': sum(terms.values()),
              'discriminator': published.discriminator_loss(plain, A, B, config)}
    for kind, loss in (('dis', terms['discriminator']), ('gen', terms['generator'])):
        parameters = {name: parameter for name, parameter in plain.named_parameters()
                      if name.startswith(kind)}
        expected |= dict(zip(parameters, torch.autograd.grad(
            loss, list(parameters.values()), allow_unused=True), strict=True))
    for name, term in terms.items():
        assert torch.allclose(values[name], term, rtol=1e-9), name
    assert gradients.keys() == {name for name, gradient in expected.items()
                                if gradient is not None}
    assert len(gradients) > 100
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, expected[name], rtol=1e-6, atol=1e-9), name


def a_batch(count: int = 2) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    batch = {domain: torch.rand(count, 3, 32, 32, generator=rng) * 2 - 1 for domain in 'AB'}
    mask = torch.full((count, 1, 32, 32), -1.0)
    mask[:, :, 8:20, 10:24] = 0.8
    return batch | {'mask': mask}


def test_the_localization_map_teaches_the_mask_in_our_recipe_alone(tiny_config):
    batch = a_batch()
    stage = LabelTransferStage(tiny_config(batch_size=2), CPU)
    values = stage.step(batch, 0).losses
    assert values['localization'] > 0 and values['normal_mask'] > 0
    without = LabelTransferStage(tiny_config(batch_size=2, recipe='published'), CPU)
    values = without.step({name: batch[name] for name in 'AB'}, 0).losses
    assert values['localization'] == values['normal_mask'] == 0
    # weighted terms add up to the generators' loss
    terms = [value for name, value in values.items() if name not in ('discriminator', 'generator')]
    assert torch.allclose(sum(terms), values['generator'])


def test_what_teaches_the_mask_is_not_refined(tiny_config, monkeypatch):
    config = tiny_config(batch_size=2)
    monkeypatch.setattr(refinement, 'refine', None)  # to call it would fail
    result = LabelTransferStage(config, CPU).step(a_batch(), 0)
    assert config.refine and result.losses['localization'] > 0


def test_published_stage_2_sees_the_stage_1_mask_as_second_image(tiny_config):
    stage = LabelTransferStage(tiny_config(stage=2, recipe='published'), CPU)
    batch = a_batch(1)
    outputs = []
    for mask in (batch['mask'], -batch['mask']):
        torch.manual_seed(0)
        fresh = LabelTransferStage(stage.config, CPU)
        fresh.networks.load_state_dict(stage.networks.state_dict())
        outputs.append(fresh.step(batch | {'mask': mask}, 0).losses)
    assert outputs[0]['cycle'] != outputs[1]['cycle']
    assert outputs[0]['localization'] == 0  # there it is seen, and teaches nothing


def test_augmented_images_are_kept_larger_and_cropped(tiny_config):
    plain = tiny_config(augment=False)
    augmented = dataclasses.replace(plain, augment=True)
    assert LabelTransferStage.sample_size(plain) == (32, 32)
    assert LabelTransferStage.sample_size(augmented) == (82, 82)


def test_every_rho_stays_between_0_and_1(tiny_config):
    stage = LabelTransferStage(tiny_config(batch_size=2, lr=5.0), CPU)
    stage.step(a_batch(), 0)
    rhos = [parameter for name, parameter in stage.networks.named_parameters()
            if name.endswith('rho')]
    assert rhos and all(0 <= rho.min() and rho.max() <= 1 for rho in rhos)
