"""The networks: the published outputs and losses, shapes, and what the normalizations compute."""
import os
from pathlib import Path

import pytest
import torch

import checkpoint as checkpoints
from config import DEFAULT_ENCODER, DISCRIMINATORS, NETWORKS_OF, Config, resolve
from helpers import TINY
from networks import (
    ILN,
    AdaILN,
    Discriminator,
    build_networks,
    clip_rho,
    count_parameters,
    create_encoder,
)
from stages.label_transfer import LabelTransferStage
from utils import UserError

VECTORS = os.environ.get('REFERENCE_VECTORS')
both_generations = pytest.mark.parametrize('generation', ['first', 'second'])


def small(**options):
    return Config(**{**TINY, 'n_res': 2, **options})


def build_generator(generation='first'):
    return build_networks(small(generation=generation), ['genA2B'])['genA2B']


def random_images(count=1, height=32, width=32):
    return torch.rand(count, 3, height, width) * 2 - 1


@pytest.mark.skipif(not VECTORS, reason='REFERENCE_VECTORS is not set')
@both_generations
def test_outputs_and_losses_are_the_published_ones(generation, tmp_path, monkeypatch):
    content = torch.load(Path(VECTORS) / f'{generation}_generation.pt', weights_only=True)
    torch.save(content['params'], tmp_path / 'x.pt')
    checkpoint = checkpoints.read(tmp_path / 'x.pt')
    unit_weights = dict.fromkeys(('adv_weight', 'dis_weight', 'cycle_weight', 'identity_weight',
                                  'cam_weight', 'recon_weight'), 1.0)
    config = resolve({'img_size': 128, 'device': 'cpu', **unit_weights}, checkpoint.config)
    stage = LabelTransferStage(config, torch.device('cpu'))
    checkpoints.load_networks(stage.networks, checkpoint)
    stage.networks.eval()
    for call, expected_outputs in content['outputs'].items():
        network, image = call.rstrip(')').split('(')
        with torch.no_grad():
            output = stage.networks[network](content[image])
        for name, expected in expected_outputs.items():
            ours = getattr(output, name).expand_as(expected)
            assert (ours - expected).abs().max() < 1e-4, f'{call}.{name}'

    expected = content['losses']
    monkeypatch.setattr(stage.networks, 'train', lambda mode=True: None)  # no power iteration
    for optimizer in stage.optimizers.values():
        monkeypatch.setattr(optimizer, 'step', lambda: None)
    ours = stage.step({'A': content['A'], 'B': content['B']}, 0).losses
    assert ours['adversarial'].item() == pytest.approx(
        expected['adv'] + expected.get('adv_composite', 0), abs=2e-4)
    for name, theirs in (('discriminator', 'D'), ('cycle', 'cycle'), ('identity', 'identity'),
                         ('class_attention', 'cam'), ('recon', 'recon')):
        assert ours[name].item() == pytest.approx(expected[theirs], abs=1e-4), name


@pytest.mark.parametrize('adaptive', [False, True])
def test_iln_is_its_formula(adaptive):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64) * 4 + 10
    rho, gamma, beta = torch.rand(1, 3, 1, 1), torch.randn(2, 3, 1, 1), torch.randn(2, 3, 1, 1)
    layer = AdaILN(3) if adaptive else ILN(3)
    layer.rho.data = rho
    if adaptive:
        ours = layer(x.float(), gamma[..., 0, 0], beta[..., 0, 0])
    else:
        layer.gamma.data, layer.beta.data = gamma, beta = gamma[:1], beta[:1]
        ours = layer(x.float())
    instance, whole = (
        (x - x.mean(over, keepdim=True)) / (x.var(over, keepdim=True) + 1e-5).sqrt()
        for over in ((2, 3), (1, 2, 3)))  # by the unbiased variance
    expected = gamma * (rho * instance + (1 - rho) * whole) + beta
    assert torch.allclose(ours.double(), expected, atol=1e-5)


def test_rho_starts_as_published_and_is_clipped():
    assert ILN(2).rho.tolist() == torch.zeros(1, 2, 1, 1).tolist()
    assert torch.equal(AdaILN(2).rho, torch.full((1, 2, 1, 1), 0.9))
    network = build_generator()
    rhos = [parameter for name, parameter in network.named_parameters() if name.endswith('rho')]
    for rho in rhos:
        rho.data = torch.linspace(-1, 2, rho.numel()).view_as(rho)
    clip_rho(network)
    assert len(rhos) > 5 and all(rho.min() == 0 and rho.max() == 1 for rho in rhos)


@both_generations
@pytest.mark.parametrize('light, trained_at, img_ch', [(True, 32, 3), (False, (28, 40), 1)])
def test_any_multiple_of_4_large_enough(generation, light, trained_at, img_ch):
    config = small(generation=generation, light=light, img_size=trained_at, img_ch=img_ch)
    networks = build_networks(config)
    image = random_images(2, 28, 40)[:, :img_ch]
    output = networks['genA2B'](image)
    assert output.fake.shape == output.recon.shape == image.shape
    assert output.mask.shape == (2, 1, 28, 40) and output.heatmap.shape == (2, 1, 7, 10)
    # the mask confines the change
    result, change = ((output.fake, output.content) if generation == 'first'
                      else (output.composite, output.fake))
    assert torch.allclose(result, output.mask * change + (1 - output.mask) * image)
    assert 0 <= output.mask.min() and output.mask.max() <= 1 and output.fake.abs().max() <= 1
    for name in DISCRIMINATORS:
        assert networks[name](image).logit.shape[:2] == (2, 1)
    for name in ('genA2B', *DISCRIMINATORS):
        assert networks[name](image).cam_logit.shape == (2, 2)
    with pytest.raises(ValueError, match='multiples of 4'):
        networks['genA2B'](image[:, :, :26])


@pytest.mark.parametrize('n_dis', [4, 5, 6])
def test_smallest_size_is_the_smallest_the_discriminator_takes(n_dis):
    config = small(n_dis=n_dis, img_size=256)
    discriminator, size = Discriminator(n_dis + 1, config), config.smallest_size
    discriminator(torch.zeros(1, 3, size, size))
    with pytest.raises(RuntimeError):
        discriminator(torch.zeros(1, 3, size - 4, size - 4))


@both_generations
@torch.no_grad()
def test_mask_path_and_no_reconstruction_give_the_same_and_run_only_what_they_need(generation):
    generator, image = build_generator(generation), random_images(2)
    whole, part = generator(image), generator(image, recon_of=1)
    assert generator(image, recon_of=0).recon is None
    assert torch.allclose(part.recon, whole.recon[:1], atol=1e-6)
    assert torch.equal(part.fake, whole.fake)
    ran = set()
    for name, part in generator.named_children():
        for module in (part, *part.children()):
            module.register_forward_hook(lambda *_, name=name: ran.add(name))
    short = generator.predict_mask(image)
    assert torch.equal(short.mask, whole.mask) and torch.equal(short.heatmap, whole.heatmap)
    assert ran == {'encoder', 'class_attention'} | (
        {'attention_residual', 'mask_decoder'} if generation == 'first'
        else {'split', 'mask_output'})


def test_conditioning_image_of_the_first_generation():
    """By default the image itself, without gradient; another one changes the result."""
    torch.manual_seed(0)
    generator, image = build_generator(), random_images().requires_grad_()
    by_default, detached = generator(image), generator(image, image.detach())
    assert torch.equal(by_default.fake, detached.fake)
    gradient, expected, through_both = (
        torch.autograd.grad(output.mask.sum(), image)[0]
        for output in (by_default, detached, generator(image, image)))
    assert torch.allclose(gradient, expected) and not torch.allclose(gradient, through_both)
    assert not torch.allclose(generator(image, -image.detach()).mask, by_default.mask)


@pytest.mark.parametrize('options', [{'stage': 0}, {'stage': 1}, {'stage': 1, 'light': False},
                                     {'stage': 1, 'generation': 'second'}, {'stage': 2},
                                     {'stage': 2, 'encoder': DEFAULT_ENCODER}], ids=str)
def test_parameters_are_counted_without_building(options):
    networks = build_networks(small(**options))
    assert tuple(networks) == NETWORKS_OF[small(**options).method]
    assert count_parameters(small(**options)) == {
        name: sum(parameter.numel() for parameter in network.parameters())
        for name, network in networks.items()}


@pytest.mark.parametrize('name', ['hf-hub:timm/resnet18', 'local-dir:/tmp', '../../etc', 'resnet'])
def test_an_encoder_has_a_plain_name_of_timm(name, monkeypatch):
    monkeypatch.setattr('timm.create_model', None)  # nothing is asked for it
    with pytest.raises(UserError, match=f'--encoder {name}: has to be none or a network of timm'):
        create_encoder(name, 3)
