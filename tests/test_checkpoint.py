"""Checkpoints: the authors' files, ours, broken ones, and which file is chosen."""
import pickle

import pytest
import torch

import checkpoint as checkpoints
from config import ARCHITECTURE, NETWORKS, SAVED, Config, resolve
from networks import build_networks
from stages.label_transfer import LabelTransferStage
from utils import UserError


def authors_file(path, config, names=NETWORKS, extra=None):
    """A file as the authors write it, from our networks through the table read backwards."""
    networks = build_networks(config, names)
    spectral = {ours: theirs for theirs, ours in checkpoints._SPECTRAL.items()}
    ends = (*spectral, 'weight', 'bias', 'rho', 'gamma', 'beta')
    content = {}
    for name, network in networks.items():
        table = checkpoints.authors_layers(name, config.generation, config.n_res, config.n_dis)
        layers = {ours: theirs for theirs, ours in table.items()}
        content[name] = {}
        for key, tensor in network.state_dict().items():
            end = next(end for end in ends if key.endswith('.' + end))
            layer = key[:-len(end) - 1]
            content[name][f'{layers[layer]}.{spectral.get(end, end)}'] = tensor
    content['genA2B'].update(extra or {})
    torch.save(content, path)
    return networks


def of_shape(generation, ch, n_res, light, n_dis, img_size, img_ch):
    return Config(generation=generation, ch=ch, n_res=n_res, light=light, n_dis=n_dis,
                  img_size=img_size, img_ch=img_ch, recipe='published')


LIGHT, FULL = of_shape('first', 4, 2, True, 4, 32, 3), of_shape('first', 6, 3, False, 5, 48, 3)
SECOND = of_shape('second', 4, 1, True, 6, 96, 1)
SECOND_FULL = of_shape('second', 4, 2, False, 4, 24, 3)


@pytest.mark.parametrize('config', [LIGHT, FULL, SECOND, SECOND_FULL],
                         ids=['light', 'full', 'second', 'second full'])
def test_architecture_and_weights_are_read_off_an_authors_file(config, tmp_path):
    path = tmp_path / 'BraTS_params_0000460.pt'
    networks = authors_file(path, config)
    checkpoint = checkpoints.read(path)
    assert checkpoint.iteration == 460
    flags = {'img_size': config.img_size} if config.light else {}
    resolved = resolve(flags, checkpoint.config, str(path))
    assert all(getattr(resolved, name) == getattr(config, name)
               for name in (*ARCHITECTURE, 'recipe'))
    assert resolved.dataset == 'BraTS' and resolved.method == 'label_transfer'
    loaded = build_networks(resolved)
    checkpoints.load_networks(loaded, checkpoint)
    for name, network in networks.items():
        for key, tensor in network.state_dict().items():
            assert torch.equal(loaded[name].state_dict()[key], tensor), f'{name}.{key}'


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


def test_a_contradicting_flag_names_both_values(tmp_path):
    authors_file(tmp_path / 'x.pt', FULL)
    checkpoint = checkpoints.read(tmp_path / 'x.pt')
    flags = {'generation': 'second', 'ch': 8, 'n_res': 4, 'light': True, 'n_dis': 6,
             'img_size': 64, 'img_ch': 1}
    for name, value in flags.items():
        with pytest.raises(UserError) as caught:
            resolve({name: value, 'phase': 'test'}, checkpoint.config, 'x.pt')
        assert f'--{name} {value} ' in str(caught.value)
        assert f'{name} {checkpoint.config[name]};' in str(caught.value)


def test_unused_keys_are_ignored_and_unknown_ones_listed(tmp_path):
    unused = {key: torch.zeros(1) for key in (
        'gamma2.weight', 'beta2.weight', 'Mask_Layer_1.conv1.weight',
        'Mask_Layer_UP_2.conv1.weight', 'Mask_Layer_DOWN_4.conv1.weight')}
    authors_file(tmp_path / 'second.pt', SECOND, ['genA2B'], extra=unused)
    checkpoints.read(tmp_path / 'second.pt')
    unknown = {'Strange.weight': torch.zeros(1), 'UpBlock9.0.bias': torch.zeros(1)}
    authors_file(tmp_path / 'strange.pt', SECOND, ['genA2B'], extra=unknown)
    with pytest.raises(UserError, match=r'genA2B\.Strange\.weight, genA2B\.UpBlock9\.0\.bias'):
        checkpoints.read(tmp_path / 'strange.pt')
    authors_file(tmp_path / 'first.pt', LIGHT, ['genA2B'], extra=unused)
    with pytest.raises(UserError, match='gamma2'):
        checkpoints.read(tmp_path / 'first.pt')


def test_missing_and_misshapen_tensors_are_named(tmp_path):
    authors_file(tmp_path / 'x.pt', LIGHT)
    content = torch.load(tmp_path / 'x.pt', weights_only=True)
    del content['genA2B']['conv1x1.bias']
    content['disGA']['conv.weight_u'] = torch.zeros(3)
    torch.save(content, tmp_path / 'x.pt')
    checkpoint = checkpoints.read(tmp_path / 'x.pt')
    networks = build_networks(LIGHT)
    with pytest.raises(UserError, match=r'genA2B .*class_attention\.merge\.bias is missing'):
        checkpoints.load_networks(networks, checkpoint)
    del checkpoint.networks['genA2B']
    with pytest.raises(UserError, match=r'disGA .*is \(3,\) instead of \(1,\)'):
        checkpoints.load_networks(networks, checkpoint)


# ------------------------------------------------------------------------------------- our files


@pytest.fixture
def saved(tiny_config, tmp_path):
    stage = LabelTransferStage(tiny_config(), torch.device('cpu'))
    path = tmp_path / 'Tiny_params_0000007.pt'
    checkpoints.save(path, stage.networks, stage.config, 7, 42.5, None, stage.optimizers)
    return path, stage


def test_our_file_gives_back_everything(saved):
    path, stage = saved
    checkpoint = checkpoints.read(path)
    assert set(checkpoint.networks) == set(NETWORKS)
    assert (checkpoint.iteration, checkpoint.best_ja, checkpoint.best_score) == (7, 42.5, None)
    assert set(checkpoint.optimizers) == {'generators', 'discriminators'}
    assert torch.equal(checkpoint.random_state['torch'], torch.get_rng_state())
    assert checkpoint.config == stage.config.saved_values()
    assert tuple(checkpoint.config) == SAVED and 'device' not in SAVED
    assert [p.name for p in path.parent.glob('.*')] == []  # no temporary file is left


def test_the_part_for_test_is_small_and_loads(saved, tmp_path):
    path, stage = saved
    small = tmp_path / 'small.pt'
    checkpoints.write_test_part(checkpoints.read(path), small)
    checkpoint = checkpoints.read(small)
    assert set(checkpoint.networks) == {'genA2B'}
    assert small.stat().st_size < path.stat().st_size / 5
    networks = build_networks(stage.config, ['genA2B'])
    checkpoints.load_networks(networks, checkpoint)
    expected = stage.networks['genA2B'].state_dict()
    for key, tensor in networks['genA2B'].state_dict().items():
        assert tensor.dtype == torch.float32 and torch.allclose(tensor, expected[key], atol=1e-3)


def test_the_file_in_model_is_of_this_format():
    path, = checkpoints.MODEL_FOLDER.glob('phantom_params_*.pt')
    checkpoint = checkpoints.read(path)
    assert tuple(sorted(checkpoint.config)) == tuple(sorted(SAVED))
    config = resolve({'phase': 'test'}, checkpoint.config, str(path))
    assert (config.method, config.default_rule, config.tta) == ('label_transfer', 'otsu', 'none')
    checkpoints.take_network(checkpoint, config, 'genA2B')


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


def test_files_of_the_earlier_format_are_refused(tmp_path):
    state = {'encoder.stem.conv.weight': torch.zeros(2)}
    for network in ('genA2B', 'locator', 'average'):
        torch.save({'format': 'label-transfer 1', 'iteration': 1, 'settings': {}, network: state},
                   tmp_path / 'x.pt')
        with pytest.raises(UserError, match=r'x\.pt: made by an earlier version.*train again'):
            checkpoints.read(tmp_path / 'x.pt')


def test_values_that_no_option_can_have_are_refused(saved, tmp_path):
    content = torch.load(saved[0], weights_only=True)
    bad = {'ch': ['many', 5000, 0, True, 16.0, 10 ** 400, None], 'generation': ['third', 1],
           'light': [1, 'True'], 'lr': [0.0, float('nan'), 10 ** 400], 'tta': [''],
           'img_size': [9000, [32], [32, 32, 32], [32, 32.0], [32, True], '32'],
           'stage': [3, True, 1.0], 'dataset': [None, 7]}
    for name, values in bad.items():
        for value in values:
            torch.save(content | {'config': content['config'] | {name: value}}, tmp_path / 'x.pt')
            with pytest.raises(UserError, match=rf'x\.pt: its config has no valid {name}; damaged'):
                checkpoints.read(tmp_path / 'x.pt')
    for name in ('ch', 'student_network', 'recipe'):
        config = {other: value for other, value in content['config'].items() if other != name}
        torch.save(content | {'config': config}, tmp_path / 'x.pt')
        with pytest.raises(UserError, match=f'no valid {name};'):
            checkpoints.read(tmp_path / 'x.pt')
    other = {'device': 'cuda', 'result_dir': '/', 'unknown': torch.zeros(1), 'lr': 1,
             'img_size': [32, 32]}
    torch.save(content | {'config': content['config'] | other}, tmp_path / 'x.pt')
    config = checkpoints.read(tmp_path / 'x.pt').config  # names that none of ours are dropped
    assert tuple(config) == SAVED and config['lr'] == 1


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
    monkeypatch.undo()
    assert torch.load(path, weights_only=True) == {'a': 1}
    assert [p.name for p in tmp_path.iterdir()] == ['x.pt']


def test_what_a_killed_run_left_is_cleared(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with checkpoints.atomic_write(tmp_path / 'x.pt') as temporary:
            half = temporary
            raise KeyboardInterrupt
    half.touch()  # as after a kill, when nothing cleans up
    (tmp_path / 'Set_params_0000010.pt').touch()
    checkpoints.clear_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ['Set_params_0000010.pt']


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
    checkpoints.mark_best(tmp_path / checkpoints.file_name('Set', 10))
    checkpoints.mark_best(tmp_path / checkpoints.file_name('Set', 5))
    checkpoints.prune(tmp_path, 'Set', 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'Set_params_0000010.pt', 'Set_params_0000100.pt', 'best.pt']
    assert (tmp_path / 'best.pt').read_text() == '5'
