"""Checkpoints: the authors' files, ours, broken ones, and which file is chosen."""
import pickle
from functools import partial

import cv2
import numpy as np
import pytest
import torch

import checkpoint as checkpoints
from config import ARCHITECTURE, NETWORKS, SAVED, Config, resolve
from helpers import names, same
from networks import build_networks
from predict import Predictor
from preparation.phantom import draw_skin
from stages.label_transfer import LabelTransferStage
from utils import UserError


def authors_file(path, config, network_names=NETWORKS, extra=None):
    """A file as the authors write it, from our networks through the table read backwards."""
    networks = build_networks(config, network_names)
    spectral = {ours: theirs for theirs, ours in checkpoints._SPECTRAL.items()}
    ends = (*spectral, 'weight', 'bias', 'rho', 'gamma', 'beta')
    content = {}
    for name, network in networks.items():
        table = checkpoints.authors_layers(name, config.generation, config.n_res, config.n_dis)
        layers = {ours: theirs for theirs, ours in table.items()}
        content[name] = {}
        for key, tensor in network.state_dict().items():
            end = next(end for end in ends if key.endswith('.' + end))
            layer = layers[key[:-len(end) - 1]]
            content[name][f'{layer}.{spectral.get(end, end)}'] = tensor
    content['genA2B'].update(extra or {})
    torch.save(content, path)
    return networks


published = partial(Config, recipe='published')
second = partial(published, generation='second', ch=4)
LIGHT = published(ch=4, n_res=2, n_dis=4, img_size=32)
FULL = published(ch=6, n_res=3, n_dis=5, img_size=48, light=False)
SECOND = second(n_res=1, n_dis=6, img_size=96, img_ch=1)
SECOND_FULL = second(n_res=2, n_dis=4, img_size=24, light=False)


@pytest.mark.parametrize('config', [LIGHT, FULL, SECOND, SECOND_FULL],
                         ids=['light', 'full', 'second', 'second full'])
def test_architecture_and_weights_are_read_off_an_authors_file(config, tmp_path):
    path = tmp_path / 'BraTS_params_0000460.pt'
    networks = authors_file(path, config)
    checkpoint = checkpoints.read(path)
    flags = {'img_size': config.img_size} if config.light else {}
    resolved = resolve(flags, checkpoint.config, str(path))
    assert checkpoint.iteration == 460
    for name in (*ARCHITECTURE, 'recipe'):
        assert getattr(resolved, name) == getattr(config, name), name
    assert resolved.dataset == 'BraTS' and resolved.method == 'label_transfer'
    loaded = build_networks(resolved)
    checkpoints.load_networks(loaded, checkpoint)
    assert same(dict(networks.state_dict()), dict(loaded.state_dict()))


def test_one_generator_is_enough(tmp_path):
    authors_file(tmp_path / 'x.pt', LIGHT, ['genA2B'])
    checkpoint = checkpoints.read(tmp_path / 'x.pt')
    assert set(checkpoint.networks) == {'genA2B'}
    assert not {'n_dis', 'img_size'} & set(checkpoint.config)
    # what test needs of it, in a file of ours
    checkpoints.write_test_part(checkpoint, tmp_path / 'ours.pt')
    ours = checkpoints.read(tmp_path / 'ours.pt')
    assert checkpoint.config.items() <= ours.config.items() and 'stage' not in ours.config
    checkpoints.take_network(ours, resolve({'phase': 'test'}, ours.config), 'genA2B')


def test_unused_keys_are_ignored_and_unknown_missing_and_misshapen_ones_named(tmp_path):
    path, zero = tmp_path / 'x.pt', torch.zeros(1)
    unused = dict.fromkeys(('gamma2.weight', 'beta2.weight', 'Mask_Layer_1.conv1.weight',
                            'Mask_Layer_UP_2.conv1.weight', 'Mask_Layer_DOWN_4.conv1.weight'), zero)
    authors_file(path, SECOND, ['genA2B'], unused)
    checkpoints.read(path)
    authors_file(path, SECOND, ['genA2B'], {'Strange.weight': zero, 'UpBlock9.0.bias': zero})
    with pytest.raises(UserError, match=r'genA2B\.Strange\.weight, genA2B\.UpBlock9\.0\.bias'):
        checkpoints.read(path)
    authors_file(path, LIGHT, ['genA2B'], unused)
    with pytest.raises(UserError, match='gamma2'):
        checkpoints.read(path)
    # as are missing and misshapen tensors
    authors_file(path, LIGHT)
    content = torch.load(path, weights_only=True)
    del content['genA2B']['conv1x1.bias']
    content['disGA']['conv.weight_u'] = torch.zeros(3)
    torch.save(content, path)
    checkpoint, networks = checkpoints.read(path), build_networks(LIGHT)
    with pytest.raises(UserError, match=r'genA2B .*class_attention\.merge\.bias is missing'):
        checkpoints.load_networks(networks, checkpoint)
    del checkpoint.networks['genA2B']
    with pytest.raises(UserError, match=r'disGA .*is \(3,\) instead of \(1,\)'):
        checkpoints.load_networks(networks, checkpoint)


@pytest.fixture
def saved(tiny_config, tmp_path):
    """A file of ours, and the stage whose it is."""
    stage = LabelTransferStage(tiny_config(), torch.device('cpu'))
    path = tmp_path / 'Tiny_params_0000007.pt'
    checkpoints.save(path, stage.networks, stage.config, 7, 42.5, None, stage.optimizers)
    return path, stage


def test_our_file_gives_back_everything_and_its_part_for_test_is_small(saved):
    path, stage = saved
    checkpoint = checkpoints.read(path)
    assert set(checkpoint.networks) == set(NETWORKS)
    assert (checkpoint.iteration, checkpoint.best_ja, checkpoint.best_score) == (7, 42.5, None)
    assert set(checkpoint.optimizers) == {'generators', 'discriminators'}
    assert torch.equal(checkpoint.random_state['torch'], torch.get_rng_state())
    assert checkpoint.config == stage.config.saved_values() and tuple(checkpoint.config) == SAVED
    assert not list(path.parent.glob('.*'))  # no temporary file is left
    small = path.with_name('small.pt')
    checkpoints.write_test_part(checkpoint, small)
    checkpoint = checkpoints.read(small)
    assert set(checkpoint.networks) == {'genA2B'}
    assert small.stat().st_size < path.stat().st_size / 5
    networks = build_networks(stage.config, ['genA2B'])
    checkpoints.load_networks(networks, checkpoint)
    expected = stage.networks['genA2B'].state_dict()
    for key, tensor in networks['genA2B'].state_dict().items():
        assert tensor.dtype == torch.float32 and torch.allclose(tensor, expected[key], atol=1e-3)


class Bomb:
    def __reduce__(self) -> tuple:
        return exec, ('raise SystemExit("ran code")',)


def test_what_is_no_checkpoint_gives_one_line(saved, tmp_path):
    path, whole, zeros = tmp_path / 'x.pt', saved[0].read_bytes(), torch.zeros(2)
    earlier = {'format': 'label-transfer 1', 'iteration': 1, 'settings': {},
               'locator': {'encoder.stem.conv.weight': zeros}}
    others = [b'hello', b'', *(whole[:int(len(whole) * share)] for share in (0.01, 0.5, 0.999)),
              pickle.dumps({'genA2B': Bomb()}), [1, 2], {'genB2A': {}}, {'genA2B': 3},
              {'genA2B': {'a': 1}}, {'genA2B': {'a': zeros}},
              {'genA2B': {'DownBlock.1.weight': zeros}},
              {'genA2B': {}, 'format': checkpoints.FORMAT}, torch.zeros(3)]
    for content, part in ((None, 'no such checkpoint'), ({'genA2B': Bomb()}, 'run code'),
                          (earlier, 'made by an earlier version.*train again'),
                          (earlier | {'format': 'label-transfer 3'}, 'made by a later version'),
                          *((content, '') for content in others)):
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
        with pytest.raises(UserError, match=rf'x\.pt: .*{part}') as caught:
            checkpoints.read(path)
        assert '\n' not in str(caught.value)


def test_values_that_no_option_can_have_are_refused(saved, tmp_path):
    path = tmp_path / 'x.pt'
    checkpoints.write_test_part(checkpoints.read(saved[0]), path)
    content = torch.load(path, weights_only=True)

    def read(**changed):
        torch.save(content | {'config': content['config'] | changed}, path)
        return checkpoints.read(path).config

    bad = {'ch': ['many', 5000, 0, True, 16.0, 10 ** 400, None], 'generation': ['third', 1],
           'light': [1, 'True'], 'lr': [0.0, float('nan'), 10 ** 400], 'tta': [''],
           'img_size': [9000, [32], [32, 32, 32], [32, 32.0], [32, True], '32'],
           'stage': [3, True, 1.0], 'dataset': [None, 7]}
    for wrong in (True, 1.0, -1, None):
        torch.save(content | {'iteration': wrong}, path)
        with pytest.raises(UserError, match=r'x\.pt: does not say its iteration'):
            checkpoints.read(path)
    for name, values in bad.items():
        for value in values:
            with pytest.raises(UserError, match=rf'x\.pt: its config has no valid {name}; damaged'):
                read(**{name: value})
    for encoder in ('hf-hub:timm/resnet18', 'local-dir:/tmp', '../../etc', 'resnet18.none', 'xy'):
        with pytest.raises(UserError, match=r'x\.pt: its encoder .* is no network of timm'):
            read(encoder=encoder)
    for encoder in ('none', 'resnet18', 'resnet18.a1_in1k'):
        assert read(encoder=encoder)['encoder'] == encoder
    # names that are none of ours are dropped
    config = read(device='cuda', result_dir='/', unknown=torch.zeros(1), lr=1, img_size=[32, 32])
    assert tuple(config) == SAVED and config['lr'] == 1
    del content['config']['recipe']
    with pytest.raises(UserError, match='no valid recipe;'):
        read()


@pytest.mark.parametrize('error', [OSError(28, 'No space left'), RuntimeError('PytorchStream')])
def test_a_failed_write_leaves_the_old_file(error, tmp_path, monkeypatch):
    path = tmp_path / 'x.pt'
    checkpoints.write({'a': 1}, path)

    def fail(content, file):
        file.write(b'half')
        raise error

    monkeypatch.setattr(torch, 'save', fail)
    reason = 'No space left|the disk is full'
    with pytest.raises(OSError, match=rf'x\.pt: cannot be written: ({reason})'):
        checkpoints.write({'a': 2}, path)
    assert torch.load(path, weights_only=True) == {'a': 1} and names(tmp_path) == ['x.pt']


def test_the_choice_for_test(tmp_path, monkeypatch):
    model, run = tmp_path / 'model', tmp_path / 'results' / 'model1'
    monkeypatch.setattr(checkpoints, 'MODEL_FOLDER', model)
    model.mkdir()
    run.mkdir(parents=True)

    def chosen_with(*files):
        for path in files:
            path.touch()
        return checkpoints.choose_for_test(tmp_path / 'results', 'BraTS', 1)

    with pytest.raises(UserError) as caught:
        chosen_with(model / 'ISIC_params_0000660.pt')
    for place in (tmp_path / 'results' / 'model*' / 'best.pt', model / 'BraTS_params_*.pt'):
        assert str(place) in str(caught.value)
    newest = model / 'BraTS_params_0000460.pt'
    assert chosen_with(newest, model / 'BraTS_params_0000095.pt') == newest
    newest = run / 'BraTS_params_0000010.pt'
    assert chosen_with(run / 'BraTS_params_0000009.pt', newest, run / 'Other_params_0000011.pt'
                       ) == newest
    assert chosen_with(run / 'best.pt') == run / 'best.pt'


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    for iteration in (5, 10, 100):
        (tmp_path / checkpoints.file_name('Set', iteration)).write_text(str(iteration))
    for name in (f'.tmp_{"0" * 8}_{"0" * 16}.pt', '.tmp_mine.pt'):
        (tmp_path / name).touch()  # as a killed run leaves it, and a file of the user
    checkpoints.clear_leftovers(tmp_path)
    (tmp_path / '.tmp_mine.pt').unlink()
    for iteration in (10, 5):
        checkpoints.mark_best(tmp_path / checkpoints.file_name('Set', iteration))
    checkpoints.prune(tmp_path, 'Set', 2)
    assert names(tmp_path) == ['Set_params_0000010.pt', 'Set_params_0000100.pt', 'best.pt']
    assert (tmp_path / 'best.pt').read_text() == '5'


def blob(background: int, inside: int, head: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """An image 160×160 with a blurred disc, in a head or not, and the disc."""
    rows, columns = np.mgrid[:160, :160]
    lesion = np.hypot(rows - 70, columns - 85) < 28
    frame = np.hypot(rows - 80, columns - 80) < 72 if head else np.ones_like(lesion)
    gray = np.where(lesion, inside, background * frame) + np.random.default_rng(0).normal(
        0, 6, lesion.shape)
    gray = cv2.GaussianBlur(gray.clip(0, 255).astype(np.uint8), (0, 0), 1.5)
    return np.repeat(gray[..., None], 3, 2), lesion


@pytest.mark.parametrize(('name', 'image'), [
    ('ISIC', blob(200, 90)), ('LGG', blob(90, 200, head=True)), ('BUSI', blob(120, 20)),
    ('phantom', draw_skin(np.random.default_rng(0), 160, True))])
def test_the_shipped_weights_find_a_lesion(name, image):
    file, = checkpoints.MODEL_FOLDER.glob(f'{name}_params_*.pt')
    predictor = Predictor(file, 'cpu')
    image, lesion = image[0], image[1] > 0
    found = predictor.predict([image])[0]
    assert (found & lesion).sum() > 0.5 * (found | lesion).sum()


def test_half_precision_leaves_counters_and_earlier_files_load(tmp_path):
    config = Config(stage=2, img_size=32)
    networks = build_networks(config, ['ema'])
    state = networks['ema'].state_dict()
    assert any(not tensor.is_floating_point() for tensor in state.values())
    whole = tmp_path / 'whole.pt'
    checkpoints.write({'format': checkpoints.FORMAT, 'iteration': 1, 'best_ja': None,
                       'config': config.saved_values(), 'ema': state}, whole)
    small = tmp_path / 'small.pt'
    checkpoints.write_test_part(checkpoints.read(whole), small)
    content = torch.load(small, weights_only=True)
    assert {tensor.dtype for tensor in content['ema'].values()} == {torch.float16, torch.int64}
    content['ema'] = {key: tensor.half() for key, tensor in content['ema'].items()}
    torch.save(content, tmp_path / 'earlier.pt')
    for file in (small, tmp_path / 'earlier.pt'):
        network = checkpoints.take_network(checkpoints.read(file), config, 'ema')
        assert all(torch.allclose(tensor.float(), state[key].float(), atol=1e-2)
                   for key, tensor in network.state_dict().items())
