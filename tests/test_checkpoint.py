"""Checkpoints: the authors' files, ours, broken and hostile ones, and which file is chosen."""
import pickle

import pytest
import torch

import checkpoint as checkpoints
from networks import build_networks
from settings import NETWORKS, Architecture, resolve
from label_transfer import LabelTransfer
from utils import UserError


def authors_file(path, architecture, names=NETWORKS, extra=None):
    """A file as the authors write it, from our networks through the table read backwards."""
    networks = build_networks(architecture, names)
    spectral = {ours: theirs for theirs, ours in checkpoints._SPECTRAL.items()}
    content = {}
    for name, network in networks.items():
        table = checkpoints.authors_layers(name, architecture.generation, architecture.n_res,
                                           architecture.n_dis)
        layers = {ours: theirs for theirs, ours in table.items()}
        content[name] = {}
        for key, tensor in network.state_dict().items():
            layer, parameter = next((key[:-len(end) - 1], end) for end in (*spectral, 'weight',
                                    'bias', 'rho', 'gamma', 'beta') if key.endswith('.' + end))
            content[name][f'{layers[layer]}.{spectral.get(parameter, parameter)}'] = tensor
    content['genA2B'].update(extra or {})
    torch.save(content, path)
    return networks


CASES = [Architecture('first', 4, 2, True, 4, 32, 3), Architecture('first', 6, 3, False, 5, 48, 3),
         Architecture('second', 4, 1, True, 6, 96, 1), Architecture('second', 4, 2, False, 4, 24, 3)]


@pytest.mark.parametrize('architecture', CASES, ids=str)
def test_architecture_and_weights_are_read_off_an_authors_file(architecture, tmp_path):
    path = tmp_path / 'BraTS_params_0000460.pt'
    networks = authors_file(path, architecture)
    source = checkpoints.read(path)
    assert source.iteration == 460
    given = {} if not architecture.light else {'img_size': architecture.img_size}
    settings = resolve(given, source.settings, str(path))
    assert all(getattr(settings, name) == getattr(architecture, name)
               for name in Architecture.__annotations__)
    loaded = build_networks(settings)
    checkpoints.load_networks(loaded, source)
    for name, network in networks.items():
        for key, tensor in network.state_dict().items():
            assert torch.equal(loaded[name].state_dict()[key], tensor), f'{name}.{key}'


def test_one_generator_is_enough(tmp_path):
    authors_file(tmp_path / 'x.pt', CASES[0], ['genA2B'])
    source = checkpoints.read(tmp_path / 'x.pt')
    assert set(source.networks) == {'genA2B'} and 'n_dis' not in source.settings


@pytest.mark.parametrize('name, value', [('generation', 'second'), ('ch', 8), ('n_res', 4),
                                         ('light', True), ('n_dis', 6), ('img_size', 64),
                                         ('img_ch', 1)])
def test_a_contradicting_flag_names_both_values(name, value, tmp_path):
    authors_file(tmp_path / 'x.pt', CASES[1])
    source = checkpoints.read(tmp_path / 'x.pt')
    with pytest.raises(UserError) as caught:
        resolve({name: value, 'phase': 'test'}, source.settings, 'x.pt')
    assert f'--{name} {value} ' in str(caught.value)
    assert f'{name} {source.settings[name]};' in str(caught.value)


def test_keys_without_part_are_ignored_and_unknown_ones_listed(tmp_path):
    idle = {key: torch.zeros(1) for key in ('gamma2.weight', 'beta2.weight',
            'Mask_Layer_1.conv1.weight', 'Mask_Layer_UP_2.conv1.weight',
            'Mask_Layer_DOWN_4.conv1.weight')}
    authors_file(tmp_path / 'second.pt', CASES[2], extra=idle)
    checkpoints.read(tmp_path / 'second.pt')
    strange = {'Strange.weight': torch.zeros(1), 'UpBlock9.0.bias': torch.zeros(1)}
    authors_file(tmp_path / 'strange.pt', CASES[2], extra=strange)
    with pytest.raises(UserError, match=r'genA2B\.Strange\.weight, genA2B\.UpBlock9\.0\.bias'):
        checkpoints.read(tmp_path / 'strange.pt')
    authors_file(tmp_path / 'first.pt', CASES[0], extra=idle)
    with pytest.raises(UserError, match='gamma2'):
        checkpoints.read(tmp_path / 'first.pt')


def test_missing_and_misshapen_tensors_are_named(tmp_path):
    authors_file(tmp_path / 'x.pt', CASES[0])
    content = torch.load(tmp_path / 'x.pt', weights_only=True)
    del content['genA2B']['conv1x1.bias']
    content['disGA']['conv.weight_u'] = torch.zeros(3)
    torch.save(content, tmp_path / 'x.pt')
    source = checkpoints.read(tmp_path / 'x.pt')
    with pytest.raises(UserError, match=r'genA2B .*class_attention\.merge\.bias is missing'):
        checkpoints.load_networks(build_networks(CASES[0]), source)
    del source.networks['genA2B']
    with pytest.raises(UserError, match=r'disGA .*is \(3,\) instead of \(1,\)'):
        checkpoints.load_networks(build_networks(CASES[0]), source)


@pytest.fixture
def saved(tiny_settings, tmp_path):
    learner = LabelTransfer(tiny_settings(), torch.device('cpu'))
    path = tmp_path / 'Tiny_params_0000007.pt'
    checkpoints.save(path, learner.networks, learner.settings, 7, 42.5, None, learner.optimizers)
    return path, learner


def test_our_file_gives_back_everything(saved):
    path, learner = saved
    source = checkpoints.read(path)
    assert set(source.networks) == set(NETWORKS)
    assert (source.iteration, source.best_ja) == (7, 42.5)
    assert set(source.optimizers) == {'generators', 'discriminators'}
    assert torch.equal(source.random_state['torch'], torch.get_rng_state())
    assert source.settings['lr'] == learner.settings.lr and source.settings['ch'] == 4
    assert 'device' not in source.settings
    assert [p.name for p in path.parent.glob('.*')] == []  # no temporary file is left


def test_the_part_for_test_is_small_and_loads(saved, tmp_path):
    path, learner = saved
    small = tmp_path / 'small.pt'
    checkpoints.write_test_part(checkpoints.read(path), small)
    source = checkpoints.read(small)
    assert set(source.networks) == {'genA2B'}
    assert small.stat().st_size < path.stat().st_size / 5
    networks = build_networks(learner.settings, ['genA2B'])
    checkpoints.load_networks(networks, source)
    wanted = learner.networks['genA2B'].state_dict()
    for key, tensor in networks['genA2B'].state_dict().items():
        assert tensor.dtype == torch.float32 and torch.allclose(tensor, wanted[key], atol=1e-3)


class Bomb:
    def __reduce__(self):
        return exec, ('raise SystemExit("ran code")',)


def broken_files(folder, whole):
    """(name, content written to that path) of files that are no checkpoints."""
    yield 'text.pt', b'hello'
    yield 'empty.pt', b''
    data = whole.read_bytes()
    for part in (0.01, 0.5, 0.999):
        yield f'cut{part}.pt', data[:int(len(data) * part)]
    yield 'pickle.pt', pickle.dumps({'genA2B': Bomb()})
    torch.save({'genA2B': Bomb()}, folder / 'bomb')
    yield 'bomb.pt', (folder / 'bomb').read_bytes()
    for number, content in enumerate([[1, 2], {'genB2A': {}}, {'genA2B': 3}, {'genA2B': {'a': 1}},
                                      {'genA2B': {'a': torch.zeros(2)}},
                                      {'genA2B': {'DownBlock.1.weight': torch.zeros(2)}},
                                      {'genA2B': {}, 'format': checkpoints.FORMAT},
                                      torch.zeros(3)]):
        torch.save(content, folder / 'other')
        yield f'other{number}.pt', (folder / 'other').read_bytes()


def test_what_is_no_checkpoint_gives_one_line(saved, tmp_path):
    for name, data in broken_files(tmp_path, saved[0]):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError) as caught:
            checkpoints.read(tmp_path / name)
        assert '\n' not in str(caught.value) and name in str(caught.value), name
        if 'bomb' in name:
            assert 'run code' in str(caught.value)
    with pytest.raises(UserError, match='no such checkpoint'):
        checkpoints.read(tmp_path / 'absent.pt')


def test_damaged_settings_are_refused(saved, tmp_path):
    content = torch.load(saved[0], weights_only=True)
    content['settings']['ch'] = 'many'
    torch.save(content, tmp_path / 'x.pt')
    with pytest.raises(UserError, match='settings'):
        checkpoints.read(tmp_path / 'x.pt')


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'x.pt'
    checkpoints.write_atomically({'a': 1}, path)

    def fail(content, file):
        file.write(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(OSError):
        checkpoints.write_atomically({'a': 2}, path)
    monkeypatch.undo()
    assert torch.load(path, weights_only=True) == {'a': 1}
    assert [p.name for p in tmp_path.iterdir()] == ['x.pt']


def test_the_choice_for_test(tmp_path, monkeypatch):
    model, run = tmp_path / 'model', tmp_path / 'results' / 'model1'
    monkeypatch.setattr(checkpoints, 'MODEL_FOLDER', model)
    model.mkdir()
    run.mkdir(parents=True)

    def choose():
        return checkpoints.choose_for_test(tmp_path / 'results', 'BraTS', 1)

    (model / 'ISIC_params_0000660.pt').touch()
    with pytest.raises(UserError) as caught:
        choose()
    for place in (run / 'best.pt', run / 'BraTS_params_*.pt', model / 'BraTS_params_*.pt'):
        assert str(place) in str(caught.value)
    for name in ('BraTS_params_0000460.pt', 'BraTS_params_0000095.pt'):
        (model / name).touch()
    assert choose() == model / 'BraTS_params_0000460.pt'
    for name in ('BraTS_params_0000009.pt', 'BraTS_params_0000010.pt', 'Other_params_0000011.pt'):
        (run / name).touch()
    assert choose() == run / 'BraTS_params_0000010.pt'
    (run / 'best.pt').touch()
    assert choose() == run / 'best.pt'


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    for iteration in (5, 10, 100):
        (tmp_path / checkpoints.file_name('Set', iteration)).write_text(str(iteration))
    checkpoints.mark_best(tmp_path / checkpoints.file_name('Set', 5))
    checkpoints.prune(tmp_path, 'Set', 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'Set_params_0000010.pt', 'Set_params_0000100.pt', 'best.pt']
    assert (tmp_path / 'best.pt').read_text() == '5'
