"""Checkpoints from anywhere: mutated files give one line or load; none runs code or takes memory."""
import copy
import pickle
import random
import zipfile

import pytest
import torch

import checkpoint as checkpoints
import settings as presets
from conftest import TINY
from label_transfer import LabelTransfer
from locator import Locating
from masks import mask_network, to_array
from networks import build_networks
from settings import Architecture
from postprocess import to_bytes
from student import Student
from test_checkpoint import authors_file
from trainer import Trainer
from utils import UserError

CPU = torch.device('cpu')


def our_file(kind, settings, path):
    """A checkpoint as a run leaves it, after a step."""
    learner = kind(settings, CPU)
    batch = {domain: torch.rand(1, 3, 32, 32) for domain in 'AB'} | {'mask': torch.ones(1, 1, 32, 32)}
    learner.step(batch, 0)
    checkpoints.save(path, learner.networks, settings, 1, 50.0, None, learner.optimizers,
                     {'mask_share': 0.5})


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('files')
    for name, kind, stage in (('transfer', LabelTransfer, 1), ('locator', Locating, 0),
                              ('student', Student, 2)):
        settings = presets.resolve({**TINY, 'dataset': 'Tiny', 'stage': stage, 'batch_size': 1,
                                    'normal_batch': 1, 'location_weight': 0.0, 'turn': 15.0})
        our_file(kind, settings, folder / f'{name}.pt')
    for number, generation in enumerate(('first', 'second')):
        authors_file(folder / f'{generation}.pt',
                     Architecture(generation, 4, 1, bool(number), 4, 32, 3))
    return folder


def use(path):
    """As far as a test of the checkpoint goes: a mask of a picture."""
    source = checkpoints.read(path)
    own = presets.resolve({'phase': 'test', 'dataset': 'Tiny'}, source.settings, str(path))
    network = mask_network(source, own, CPU)
    with torch.inference_mode():
        inputs = [torch.rand(1, own.img_ch, 32, 32)]
        if own.light or own.scheme != 'published' or own.size == (32, 32):
            mask = network.predict_mask(*inputs).mask
            assert mask.shape == (1, 1, 32, 32)
            assert to_bytes(to_array(mask[0, 0])).shape == (32, 32)  # also of huge weights


def loads(path):
    """Whether a file loads; if it does not, that takes one line naming it or a setting."""
    try:
        use(path)
    except UserError as error:
        assert str(error) and '\n' not in str(error)
        assert str(path) in str(error) or '--' in str(error), error
        return False
    return True


ALL = ('transfer', 'locator', 'student', 'first', 'second')


@pytest.mark.parametrize('name', ALL)
def test_flipped_bits_and_cut_files(files, name, tmp_path):
    whole = (files / f'{name}.pt').read_bytes()
    path = tmp_path / 'x.pt'
    assert loads(files / f'{name}.pt')
    rng = random.Random(name)
    for number in range(45):
        data = bytearray(whole)
        if number % 3:
            # among what describes the content, where a bit does most, and anywhere
            ends = (len(data), 20_000)[number % 2]
            for _ in range(rng.choice((1, 1, 8, 64))):
                data[rng.randrange(min(ends, len(data)))] ^= 1 << rng.randrange(8)
        else:
            del data[rng.randrange(len(data)):]
        path.write_bytes(data)
        loads(path)


ODD = (None, 3, -1, 10**30, 1e308, float('nan'), '', 'x' * 1000, [], {}, [1, 'x'], True,
       torch.zeros(0), torch.zeros(2, 3, dtype=torch.complex64), torch.zeros(3).to_sparse(),
       torch.tensor(float('nan')), torch.zeros(1).expand(10**9), torch.zeros(1).expand(10**6, 10**6))


def mutate(content, rng):
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
    elif kind == 2 and isinstance(value, torch.Tensor) and value.dim():
        place[key] = rng.choice([value[:0], value.t() if value.dim() == 2 else value.flatten(),
                                 value.repeat(2, *[1] * (value.dim() - 1)), value.half(),
                                 value.double(), value.unsqueeze(0), value * float('inf')])
    elif kind == 3:
        place[rng.choice(('other', 'genA2B', 'settings', 'average'))] = value
    else:
        place[key] = rng.choice(ODD)


@pytest.mark.parametrize('name', ALL)
def test_changed_keys_shapes_and_values(files, name, tmp_path):
    whole = torch.load(files / f'{name}.pt', weights_only=True)
    path = tmp_path / 'x.pt'
    rng = random.Random(name)
    outcomes = []
    for _ in range(45):
        content = copy.deepcopy(whole)
        for _ in range(rng.choice((1, 1, 2, 5))):
            mutate(content, rng)
        torch.save(content, path)
        outcomes.append(loads(path))
    assert not all(outcomes)


@pytest.mark.parametrize('name', ALL[:3])
def test_settings_of_any_kind(files, name, tmp_path):
    whole = torch.load(files / f'{name}.pt', weights_only=True)
    path = tmp_path / 'x.pt'
    rng = random.Random(name)
    values = [*ODD[:12], 10**6, 10**9, [10**9, 10**9], [32, 32], -5, 0, 1e-320, 'bogus', '../..']
    for _ in range(40):
        content = copy.copy(whole) | {'settings': dict(whole['settings'])}
        content['settings'][rng.choice(list(content['settings']))] = rng.choice(values)
        torch.save(content, path)
        loads(path)


@pytest.mark.parametrize('name, kind', [('transfer', 1), ('locator', 0), ('student', 2)])
def test_what_cannot_be_resumed_says_so(files, name, kind, data_root, tmp_path):
    """Moments, random states and progress of any kind: a step is taken, or one line says why not."""
    whole = torch.load(files / f'{name}.pt', weights_only=True)
    path = tmp_path / 'x.pt'
    rng = random.Random(name)
    batch = {domain: torch.rand(1, 3, 32, 32) for domain in 'AB'} | {'mask': torch.ones(1, 1, 32, 32)}
    refused = 0
    for _ in range(10):
        content = copy.deepcopy(whole)
        part = rng.choice(['optimizers', 'optimizers', 'random_state', 'progress'])
        mutate(content[part], rng)
        torch.save(content, path)
        try:
            source = checkpoints.read(path)
            own = presets.resolve({'phase': 'train', 'stage': kind, 'resume': True, 'device': 'cpu',
                                   'data_root': str(data_root)}, source.settings, str(path))
            trainer = Trainer(own)
            trainer._prepare_learner(source)
            trainer.learner.step(batch, 1)
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
    assert 0 < refused < 10


def test_a_packed_archive_is_not_unfolded(files, tmp_path):
    packed = tmp_path / 'bomb.pt'
    with zipfile.ZipFile(files / 'transfer.pt') as source, \
            zipfile.ZipFile(packed, 'w', zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(UserError, match='packed archive'):
        checkpoints.read(packed)


def test_shapes_beyond_the_file_are_refused_before_memory_is_taken(tmp_path):
    with torch.device('meta'):
        networks = build_networks(Architecture('first', 4000, 1, True, 4, 32, 3), ['genA2B'])
    state = {key: torch.zeros(1).expand(tensor.shape)  # some 50 GB, of one number each
             for key, tensor in networks['genA2B'].state_dict().items()}
    settings = {'generation': 'first', 'ch': 4000, 'n_res': 1, 'light': True, 'n_dis': 4,
                'img_size': 32, 'img_ch': 3, 'scheme': 'published'}
    path = tmp_path / 'x.pt'
    torch.save({'format': checkpoints.FORMAT, 'iteration': 1, 'settings': settings,
                'genA2B': state}, path)
    assert path.stat().st_size < 10**6
    with pytest.raises(UserError, match='larger than the file'):
        checkpoints.read(path)


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


@pytest.mark.parametrize('place', ['genA2B', 'settings', 'optimizers', 'extra'])
@pytest.mark.parametrize('archive', [True, False])
def test_no_place_in_a_file_runs_code(files, place, archive, tmp_path):
    content = torch.load(files / 'transfer.pt', weights_only=True)
    content[place] = {'x': Runs(tmp_path / 'ran')}
    path = tmp_path / 'x.pt'
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    assert not loads(path)
    path.write_bytes(pickle.dumps(content))
    assert not loads(path)
    assert not (tmp_path / 'ran').exists()
