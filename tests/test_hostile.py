"""Checkpoints from anywhere: mutated ones give one line or load; none runs code or takes memory."""
import copy
import pickle
import random
import warnings
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import checkpoint as checkpoints
from config import MASK_NETWORK, NETWORKS, STUDENT_NETWORKS, Config, resolve
from helpers import TINY, training_batch
from inference.postprocess import to_bytes
from inference.soft_masks import mask_network, to_array
from networks import build_networks
from presets import method_of
from test_checkpoint import Bomb, authors_file
from trainer import STAGES, Trainer
from utils import UserError

CPU = torch.device('cpu')
OURS = {'transfer': 1, 'localizer': 0, 'student': 2}  # name of the file: stage
ALL = (*OURS, 'first', 'second')


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A folder of checkpoints: of each stage as a run leaves it after a step, and the authors'."""
    folder = tmp_path_factory.mktemp('files')
    for name, number in OURS.items():
        config = resolve({**TINY, 'dataset': 'Tiny', 'stage': number, 'batch_size': 1,
                          'normal_batch': 1, 'localization_weight': 0.0, 'rotate': 15.0})
        stage = STAGES[config.method](config, CPU)
        stage.step(training_batch(1), 0)
        progress = {'mask_share': 0.5, 'skipped': 0, 'stage': stage.state()}
        checkpoints.save(folder / f'{name}.pt', stage.networks, config, 1, 50.0, None,
                         stage.optimizers, progress)
    for generation in ('first', 'second'):
        config = Config(**{**TINY, 'generation': generation, 'light': generation == 'second'})
        authors_file(folder / f'{generation}.pt', config)
    return folder


@pytest.fixture(scope='module')
def contents(files):
    """What the files hold, without what `loads` does not look at and takes long to read: moments,
    random states, and all networks but the one that makes the masks and one discriminator."""
    contents = {name: torch.load(files / f'{name}.pt', weights_only=True) for name in ALL}
    for name, content in contents.items():
        kept = {'genA2B', 'disGA'}
        if name in OURS:
            content |= {'optimizers': {}, 'random_state': {}}
            kept = {MASK_NETWORK[method_of('ours', OURS[name])]}
        for network in ({*NETWORKS, *STUDENT_NETWORKS} - kept) & content.keys():
            del content[network]
    return contents


def loads(path: Path, content: Any = None, **options: Any) -> bool:
    """Whether a file, written first where there is content, loads and gives a mask; if not, with
    one line naming it or an option."""
    if isinstance(content, bytes | bytearray):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path, **options)
    try:
        checkpoint = checkpoints.read(path)
        config = resolve({'phase': 'test', 'dataset': 'Tiny'}, checkpoint.config, str(path))
        network = mask_network(checkpoint, config, CPU)
    except UserError as error:
        assert '\n' not in str(error) and (str(path) in str(error) or '--' in str(error)), error
        return False
    if config.light or 'label_transfer' not in config.method or config.size == (32, 32):
        with torch.inference_mode():
            mask = network.predict_mask(torch.rand(1, config.img_ch, 32, 32)).mask
        assert mask.shape == (1, 1, 32, 32)
        assert to_bytes(to_array(mask[0, 0])).shape == (32, 32)  # also of huge weights
    return True


@pytest.mark.parametrize('name', ALL)
def test_flipped_bits_and_cut_files(files, name, tmp_path):
    assert loads(files / f'{name}.pt')
    whole = (files / f'{name}.pt').read_bytes()
    rng = random.Random(name)
    for number in range(30):
        data = bytearray(whole)
        if number % 3 == 0:
            del data[rng.randrange(len(data)):]
        else:  # among what describes the content, where a bit does most, and anywhere
            end = min(len(data), (len(data), 20_000)[number % 2])
            for _ in range(rng.choice((1, 1, 8, 64))):
                data[rng.randrange(end)] ^= 1 << rng.randrange(8)
        loads(tmp_path / 'x.pt', data)


ODD = (None, 3, -1, 10**30, 1e308, float('nan'), '', 'x' * 1000, [], {}, [1, 'x'], True,
       torch.zeros(0), torch.zeros(2, 3, dtype=torch.complex64), torch.zeros(3).to_sparse(),
       torch.tensor(float('nan')), torch.zeros(1).expand(10**9),
       torch.zeros(1).expand(10**6, 10**6))


def mutate(content: dict, rng: random.Random) -> None:
    """Change one thing of a nested dict, somewhere."""
    place = content
    while True:
        key = rng.choice(list(place))
        if not isinstance(place[key], dict) or not place[key] or rng.random() < 0.1:
            break
        place = place[key]
    value = place[key]
    kind = rng.randrange(6)
    if kind == 0:
        del place[key]
    elif kind == 1:
        place[f'{key}x' if isinstance(key, str) else key + 1] = place.pop(key)
    elif (kind == 2 and isinstance(value, torch.Tensor) and value.dim()
          and value.numel() < 10**6):  # not of what an earlier change made huge
        place[key] = rng.choice([value[:0], value.t() if value.dim() == 2 else value.flatten(),
                                 value.repeat(2, *[1] * (value.dim() - 1)), value.half(),
                                 value.double(), value.unsqueeze(0), value * float('inf')])
    elif kind == 3:
        place[rng.choice(('other', 'genA2B', 'config', 'ema'))] = value
    else:
        place[key] = rng.choice(ODD)


@pytest.mark.parametrize('name', ALL)
def test_changed_keys_shapes_and_values(contents, name, tmp_path):
    rng, outcomes = random.Random(name), []
    for _ in range(30):
        content = copy.deepcopy(contents[name])
        for _ in range(rng.choice((1, 1, 2, 5))):
            mutate(content, rng)
        outcomes.append(loads(tmp_path / 'x.pt', content))
    assert not all(outcomes)


@pytest.mark.parametrize('name', OURS)
def test_configs_of_any_kind(contents, name, tmp_path):
    rng = random.Random(name)
    values = [*ODD[:12], 10**6, 10**9, [10**9, 10**9], [32, 32], -5, 0, 1e-320, 'bogus', '../..']
    config = contents[name]['config']
    for _ in range(30):
        changed = {rng.choice(list(config)): rng.choice(values)}
        loads(tmp_path / 'x.pt', contents[name] | {'config': config | changed})


@pytest.mark.parametrize('name', OURS)
def test_what_cannot_be_resumed_says_so(files, name, data_root, tmp_path):
    """Moments, random states, progress of any kind: a step is taken, or one line says why not."""
    whole = torch.load(files / f'{name}.pt', weights_only=True)
    path, rng, refused = tmp_path / 'x.pt', random.Random(name), 0
    for _ in range(10):
        content = copy.deepcopy(whole)
        mutate(content[rng.choice(['optimizers', 'optimizers', 'random_state', 'progress'])], rng)
        torch.save(content, path)
        try:
            checkpoint = checkpoints.read(path)
            trainer = Trainer(resolve({'phase': 'train', 'resume': True, 'device': 'cpu',
                                       'data_root': str(data_root)}, checkpoint.config, str(path)))
            trainer._build_stage(None, checkpoint)
            trainer.stage.step(training_batch(1), 1)
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
    assert 0 < refused < 10


@pytest.mark.parametrize('change, part', [
    (lambda weight: weight.to(torch.int8), r'genA2B\.\S+ \(int8\)'),
    (lambda weight: weight.to(torch.float8_e4m3fn), r'genA2B\.\S+ \(float8_e4m3fn\)'),
    (lambda weight: weight.to(torch.complex64), 'complex64'),
    (lambda weight: torch.nested.nested_tensor([weight, weight]), 'of a kind that no network has'),
    (lambda weight: weight.to_sparse(), 'of a kind that no network has'),
    (lambda weight: weight.to('meta'), 'of a kind that no network has'),
    (lambda weight: weight > 0, 'holds bool'), (lambda weight: weight.long(), 'holds int64'),
    (lambda weight: weight.double() + 1e300, 'not finite')])
def test_weights_of_other_kinds_are_refused_by_name(contents, change, part, tmp_path):
    key, weight = next(iter(contents['transfer']['genA2B'].items()))
    path = tmp_path / 'x.pt'
    with warnings.catch_warnings(), pytest.raises(UserError, match=rf'x\.pt: .*{part}'):
        warnings.simplefilter('ignore')  # torch's, of nested tensors
        changed = contents['transfer']['genA2B'] | {key: change(weight)}
        torch.save(contents['transfer'] | {'genA2B': changed}, path)
        checkpoint = checkpoints.read(path)
        checkpoints.take_network(checkpoint, resolve({'phase': 'test'}, checkpoint.config),
                                 'genA2B')


@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.', 'model._orig_mod.', 'parameters'])
def test_weights_as_other_programs_save_them_load(contents, prefix, tmp_path):
    """Of wrapped networks, as parameters, in bfloat16, and of two networks that share storage."""
    state = contents['transfer']['genA2B']
    if prefix == 'parameters':
        other = {key: torch.nn.Parameter(tensor.bfloat16()) for key, tensor in state.items()}
    else:
        other = {prefix + key: tensor for key, tensor in state.items()}
    content = contents['transfer'] | {'genA2B': other, 'genB2A': other}
    assert loads(tmp_path / 'x.pt', content)
    assert (tmp_path / 'x.pt').stat().st_size < 1.6 * sum(
        tensor.nbytes for tensor in other.values())  # the second network takes no place of its own
    checkpoint = checkpoints.read(tmp_path / 'x.pt')
    assert checkpoint.networks['genA2B'].keys() == state.keys()
    assert len(checkpoints.fingerprint(checkpoint)) == 16
    if prefix == 'module.':
        assert not loads(tmp_path / 'x.pt', content | {'genA2B': other | state})


def test_torchscript_is_refused_before_torch_reads_it(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, 'load', None)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / 'x.pt')
    with pytest.raises(UserError, match=r'x\.pt: refused: TorchScript'):
        checkpoints.read(tmp_path / 'x.pt')


@pytest.mark.parametrize('name', OURS)
def test_a_size_beyond_the_memory_is_refused(contents, name, tmp_path, monkeypatch):
    monkeypatch.setattr('runtime.preflight.available_memory', lambda device: 1e9)
    config = contents[name]['config'] | {'img_size': 8192}
    torch.save(contents[name] | {'config': config}, tmp_path / 'x.pt')
    checkpoint = checkpoints.read(tmp_path / 'x.pt')
    with pytest.raises(UserError, match=r'x\.pt: says images of 8192 px.*--img_size'):
        resolve({'phase': 'test'}, checkpoint.config, 'x.pt')
    for flags, is_small in (({'img_size': 8192}, False), ({'img_size': 64}, True)):
        config = resolve({'phase': 'test', **flags}, checkpoint.config)
        with nullcontext() if is_small else pytest.raises(
                UserError, match=r'x\.pt: .*memory for one image of 8192×8192 px.*--img_size'):
            mask_network(checkpoint, config, CPU)


def test_a_compressed_archive_is_not_expanded(files, tmp_path):
    packed = tmp_path / 'bomb.pt'
    with (zipfile.ZipFile(files / 'transfer.pt') as source,
          zipfile.ZipFile(packed, 'w', zipfile.ZIP_DEFLATED) as target):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(UserError, match='compressed archive'):
        checkpoints.read(packed)


def test_shapes_beyond_the_file_are_refused_before_memory_is_taken(tmp_path):
    config = Config(**{**TINY, 'ch': 4000}, recipe='published')
    with torch.device('meta'):
        networks = build_networks(config, ['genA2B'])
    state = {key: torch.zeros(1).expand(tensor.shape)  # some 50 GB, of one number each
             for key, tensor in networks['genA2B'].state_dict().items()}
    path = tmp_path / 'x.pt'
    torch.save({'format': checkpoints.FORMAT, 'iteration': 1, 'config': config.saved_values(),
                'genA2B': state}, path)
    assert path.stat().st_size < 10**6
    with pytest.raises(UserError, match='larger than the file'):
        checkpoints.read(path)


@pytest.mark.parametrize('place', ['genA2B', 'config', 'optimizers', 'extra'])
def test_no_place_in_a_file_runs_code(contents, place, tmp_path):
    content = contents['transfer'] | {place: {'x': Bomb()}}  # it ends the program
    for archive in (True, False):
        assert not loads(tmp_path / 'x.pt', content, _use_new_zipfile_serialization=archive)
    assert not loads(tmp_path / 'x.pt', pickle.dumps(content))
