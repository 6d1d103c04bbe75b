"""The networks: the published results, shapes, and what the normalisations compute."""
import os
from pathlib import Path

import pytest
import torch

import checkpoint as checkpoints
from networks import AdaILN, Discriminator, ILN, build_networks, clip_rho
from settings import DISCRIMINATORS, GENERATORS, Architecture, resolve
from label_transfer import LabelTransfer

VECTORS = os.environ.get('REFERENCE_VECTORS')
needs_vectors = pytest.mark.skipif(not VECTORS, reason='REFERENCE_VECTORS is not set')


def architecture(generation='first', light=True, img_size=32, img_ch=3, n_dis=4):
    return Architecture(generation, ch=4, n_res=2, light=light, n_dis=n_dis, img_size=img_size,
                        img_ch=img_ch)


@pytest.fixture(params=['first', 'second'])
def vectors(request, tmp_path):
    """The published vectors of a generation and its networks, read as an authors' file."""
    content = torch.load(Path(VECTORS) / f'{request.param}_generation.pt', weights_only=True)
    path = tmp_path / 'BraTS_params_0000460.pt'
    torch.save(content['params'], path)
    source = checkpoints.read(path)
    unit_weights = {name: 1.0 for name in ('adv_weight', 'dis_weight', 'cycle_weight',
                                           'identity_weight', 'cam_weight', 'recon_weight')}
    settings = resolve({'img_size': 128, 'device': 'cpu', **unit_weights}, source.settings)
    learner = LabelTransfer(settings, torch.device('cpu'))
    checkpoints.load_networks(learner.networks, source)
    learner.networks.eval()
    return content, learner


@needs_vectors
def test_every_output_is_the_published_one(vectors):
    content, learner = vectors
    for call, outputs in content['outputs'].items():
        network, image = call.rstrip(')').split('(')
        with torch.no_grad():
            made = learner.networks[network](content[image])
        for name, expected in outputs.items():
            ours = getattr(made, name).expand_as(expected)
            assert (ours - expected).abs().max() < 1e-4, f'{call}.{name}'


@needs_vectors
def test_every_loss_is_the_published_one(vectors, monkeypatch):
    content, learner = vectors
    expected = content['losses']
    monkeypatch.setattr(learner.networks, 'train', lambda mode=True: None)  # no power iteration
    for optimizer in learner.optimizers.values():
        monkeypatch.setattr(optimizer, 'step', lambda: None)
    ours = learner.step({'A': content['A'], 'B': content['B']}, 0)
    assert ours['discriminator'].item() == pytest.approx(expected['D'], abs=1e-4)
    assert ours['adversarial'].item() == pytest.approx(
        expected['adv'] + expected.get('adv_composite', 0), abs=2e-4)
    for name, theirs in (('cycle', 'cycle'), ('identity', 'identity'),
                         ('class_attention', 'cam'), ('recon', 'recon')):
        assert ours[name].item() == pytest.approx(expected[theirs], abs=1e-4), name


@pytest.mark.parametrize('adaptive', [False, True])
def test_iln_is_its_formula(adaptive):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64) * 4 + 10
    rho, gamma, beta = torch.rand(1, 3, 1, 1), torch.randn(2, 3), torch.randn(2, 3)
    layer = AdaILN(3) if adaptive else ILN(3)
    layer.rho.data = rho
    if adaptive:
        ours = layer(x.float(), gamma, beta)
        gamma, beta = gamma[:, :, None, None], beta[:, :, None, None]
    else:
        gamma, beta = gamma[:1, :, None, None], beta[:1, :, None, None]
        layer.gamma.data, layer.beta.data = gamma, beta
        ours = layer(x.float())
    instance = ((x - x.mean((2, 3), keepdim=True))
                / (x.var((2, 3), unbiased=True, keepdim=True) + 1e-5).sqrt())
    whole = ((x - x.mean((1, 2, 3), keepdim=True))
             / (x.var((1, 2, 3), unbiased=True, keepdim=True) + 1e-5).sqrt())
    expected = gamma * (rho * instance + (1 - rho) * whole) + beta
    assert torch.allclose(ours.double(), expected, atol=1e-5)


def test_rho_starts_as_published_and_is_clipped():
    assert ILN(2).rho.tolist() == torch.zeros(1, 2, 1, 1).tolist()
    assert torch.equal(AdaILN(2).rho, torch.full((1, 2, 1, 1), 0.9))
    network = build_networks(architecture(), ['genA2B'])['genA2B']
    rhos = [parameter for name, parameter in network.named_parameters() if name.endswith('rho')]
    with torch.no_grad():
        for rho in rhos:
            rho.copy_(torch.linspace(-1, 2, rho.numel()).view_as(rho))
    clip_rho(network)
    assert len(rhos) > 5
    assert all(rho.min() == 0 and rho.max() == 1 for rho in rhos)


@pytest.mark.parametrize('generation', ['first', 'second'])
@pytest.mark.parametrize('light, trained_at', [(True, 32), (False, (28, 40))])
def test_any_multiple_of_4_large_enough(generation, light, trained_at):
    networks = build_networks(architecture(generation, light, trained_at))
    image = torch.rand(2, 3, 28, 40) * 2 - 1
    made = networks['genA2B'](image)
    assert made.fake.shape == made.recon.shape == image.shape
    assert made.mask.shape == (2, 1, 28, 40) and made.heatmap.shape == (2, 1, 7, 10)
    assert made.cam_logit.shape == (2, 2)
    assert 0 <= made.mask.min() and made.mask.max() <= 1 and made.fake.abs().max() <= 1
    for name in DISCRIMINATORS:
        judged = networks[name](image)
        assert judged.logit.shape[:2] == (2, 1) and judged.cam_logit.shape == (2, 2)
    with pytest.raises(ValueError, match='multiples of 4'):
        networks['genA2B'](image[:, :, :26])


@pytest.mark.parametrize('n_dis', [4, 5, 6])
def test_smallest_size_is_the_smallest_the_discriminator_takes(n_dis):
    shape = architecture(n_dis=n_dis)
    discriminator = Discriminator(n_dis + 1, shape)
    size = shape.smallest_size('train')
    discriminator(torch.zeros(1, 3, size, size))
    with pytest.raises(RuntimeError):
        discriminator(torch.zeros(1, 3, size - 4, size - 4))


@pytest.mark.parametrize('generation', ['first', 'second'])
def test_one_channel_pictures(generation):
    networks = build_networks(architecture(generation, img_ch=1))
    made = networks['genB2A'](torch.zeros(1, 1, 32, 32))
    assert made.fake.shape == (1, 1, 32, 32)
    assert networks['disGA'](made.fake).logit.shape[1] == 1


@pytest.mark.parametrize('generation', ['first', 'second'])
def test_mask_path_gives_the_same_and_runs_only_what_it_needs(generation):
    generator = build_networks(architecture(generation), ['genA2B'])['genA2B']
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        whole = generator(image)
    ran = set()
    for name, part in generator.named_children():
        part.register_forward_hook(lambda *_, name=name: ran.add(name))
        for child in part.children():
            child.register_forward_hook(lambda *_, name=name: ran.add(name))
    with torch.no_grad():
        short = generator.predict_mask(image)
    assert torch.equal(short.mask, whole.mask) and torch.equal(short.heatmap, whole.heatmap)
    shared = {'encoder', 'class_attention'}
    assert ran == shared | ({'attention_residual', 'mask_decoder'} if generation == 'first'
                            else {'split', 'mask_output'})


def test_the_mask_confines_the_change():
    generator = build_networks(architecture(), ['genA2B'])['genA2B']
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    made = generator(image)
    assert torch.allclose(made.fake, made.mask * made.content + (1 - made.mask) * image)
    made = build_networks(architecture('second'), ['genA2B'])['genA2B'](image)
    assert torch.allclose(made.composite, made.mask * made.fake + (1 - made.mask) * image)


def test_second_picture_of_the_first_generation():
    """By default the image itself, without gradient; another one changes the result."""
    torch.manual_seed(0)
    generator = build_networks(architecture(), ['genA2B'])['genA2B']
    image = (torch.rand(1, 3, 32, 32) * 2 - 1).requires_grad_()
    made = generator(image)
    given = generator(image, image.detach())
    assert torch.equal(made.fake, given.fake)
    gradient, = torch.autograd.grad(made.mask.sum(), image)
    expected, = torch.autograd.grad(given.mask.sum(), image)
    through_both, = torch.autograd.grad(generator(image, image).mask.sum(), image)
    assert torch.allclose(gradient, expected) and not torch.allclose(gradient, through_both)
    assert not torch.allclose(generator(image, -image.detach()).mask, made.mask)


@pytest.mark.parametrize('generation', ['first', 'second'])
def test_reconstruction_is_left_out_on_request(generation):
    generator = build_networks(architecture(generation), ['genA2B'])['genA2B']
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    assert generator(image, recon_of=0).recon is None
    whole, part = generator(image), generator(image, recon_of=1)
    assert torch.allclose(part.recon, whole.recon[:1], atol=1e-6)
    assert torch.equal(part.fake, whole.fake)
    assert set(GENERATORS) == {'genA2B', 'genB2A'}
