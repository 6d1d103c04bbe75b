"""Checkpoints from anywhere: mutated ones give one line or load; none runs code or takes memory."""
import copy
import pickle
import random
import zipfile

import pytest
import torch

import checkpoint as checkpoints
from config import MASK_NETWORK, NETWORKS, STUDENT_NETWORKS, Config, method_of, resolve
from helpers import TINY
from inference.postprocess import to_bytes
from inference.soft_masks import mask_network, to_array
from networks import build_networks
from stages.label_transfer import LabelTransferStage
from stages.localizer import LocalizerStage
from stages.student import StudentStage
from test_checkpoint import authors_file
from trainer import Trainer
from utils import UserError

CPU = torch.device('cpu')
OURS = ('transfer', 'localizer', 'student')
ALL = (*OURS, 'first', 'second')


def random_batch():
    return {domain: torch.rand(1, 3, 32, 32) for domain in 'AB'} | {
        'mask': torch.ones(1, 1, 32, 32)}


def our_file(stage_class, config, path):
    """A checkpoint as a run leaves it, after a step."""
    stage = stage_class(config, CPU)
    stage.step(random_batch(), 0)
    checkpoints.save(path, stage.networks, config, 1, 50.0, None, stage.optimizers,
                     {'mask_share': 0.5, 'skipped': 0, 'stage': stage.state()})


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('files')
    for name, stage_class, stage in (('transfer', LabelTransferStage, 1),
                                     ('localizer', LocalizerStage, 0),
                                     ('student', StudentStage, 2)):
        config = resolve({**TINY, 'dataset': 'Tiny', 'stage': stage, 'batch_size': 1,
                          'normal_batch': 1, 'localization_weight': 0.0, 'rotate': 15.0})
        our_file(stage_class, config, folder / f'{name}.pt')
    for generation, light in (('first', False), ('second', True)):
        config = Config(generation=generation, ch=4, n_res=1, light=light, n_dis=4, img_size=32)
        authors_file(folder / f'{generation}.pt', config)
    return folder


@pytest.fixture(scope='module')
def contents(files):
    """What the files hold, without what `use` does not look at and takes long to read: moments,
    random states, and all networks but the one that makes the masks and one discriminator."""
    contents = {}
    for name in ALL:
        content = contents[name] = torch.load(files / f'{name}.pt', weights_only=True)
        kept = {'genA2B', 'disGA'}
        if name in OURS:
            content['optimizers'], content['random_state'] = {}, {}
            config = content['config']
            kept = {MASK_NETWORK[method_of(config['recipe'], config['stage'])]}
        for network in {*NETWORKS, *STUDENT_NETWORKS} - kept:
            content.pop(network, None)
    return contents


def use(path):
    """As far as a test of the checkpoint goes: a mask of an image."""
    checkpoint = checkpoints.read(path)
    config = resolve({'phase': 'test', 'dataset': 'Tiny'}, checkpoint.config, str(path))
    network = mask_network(checkpoint, config, CPU)
    with torch.inference_mode():
        inputs = [torch.rand(1, config.img_ch, 32, 32)]
        if (config.light or not config.method.startswith('label_transfer')
                or config.size == (32, 32)):
            mask = network.predict_mask(*inputs).mask
            assert mask.shape == (1, 1, 32, 32)
            assert to_bytes(to_array(mask[0, 0])).shape == (32, 32)  # also of huge weights


def loads(path):
    """Whether a file loads; if not, with one line naming it or an option."""
    try:
        use(path)
    except UserError as error:
        assert str(error) and '\n' not in str(error)
        assert str(path) in str(error) or '--' in str(error), error
        return False
    return True


@pytest.mark.parametrize('name', ALL)
def test_flipped_bits_and_cut_files(files, name, tmp_path):
    whole = (files / f'{name}.pt').read_bytes()
    path = tmp_path / 'x.pt'
    assert loads(files / f'{name}.pt')
    rng = random.Random(name)
    for number in range(30):
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
       torch.tensor(float('nan')), torch.zeros(1).expand(10**9),
       torch.zeros(1).expand(10**6, 10**6))


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
    path = tmp_path / 'x.pt'
    rng = random.Random(name)
    outcomes = []
    for _ in range(30):
        content = copy.deepcopy(contents[name])
        for _ in range(rng.choice((1, 1, 2, 5))):
            mutate(content, rng)
        torch.save(content, path)
        outcomes.append(loads(path))
    assert not all(outcomes)


@pytest.mark.parametrize('name', OURS)
def test_configs_of_any_kind(contents, name, tmp_path):
    path = tmp_path / 'x.pt'
    rng = random.Random(name)
    values = [*ODD[:12], 10**6, 10**9, [10**9, 10**9], [32, 32], -5, 0, 1e-320, 'bogus', '../..']
    for _ in range(30):
        content = contents[name] | {'config': dict(contents[name]['config'])}
        content['config'][rng.choice(list(content['config']))] = rng.choice(values)
        torch.save(content, path)
        loads(path)


@pytest.mark.parametrize('name', OURS)
def test_what_cannot_be_resumed_says_so(files, name, data_root, tmp_path):
    """Moments, random states, progress of any kind: a step is taken, or one line says why not."""
    whole = torch.load(files / f'{name}.pt', weights_only=True)
    path = tmp_path / 'x.pt'
    rng = random.Random(name)
    refused = 0
    for _ in range(10):
        content = copy.deepcopy(whole)
        part = rng.choice(['optimizers', 'optimizers', 'random_state', 'progress'])
        mutate(content[part], rng)
        torch.save(content, path)
        try:
            checkpoint = checkpoints.read(path)
            trainer = Trainer(resolve({'phase': 'train', 'resume': True, 'device': 'cpu',
                                       'data_root': str(data_root)}, checkpoint.config, str(path)))
            trainer._build_stage(None, checkpoint)
            trainer.stage.step(random_batch(), 1)
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
    assert 0 < refused < 10


def test_a_compressed_archive_is_not_expanded(files, tmp_path):
    packed = tmp_path / 'bomb.pt'
    with zipfile.ZipFile(files / 'transfer.pt') as source, \
            zipfile.ZipFile(packed, 'w', zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(UserError, match='compressed archive'):
        checkpoints.read(packed)


def test_shapes_beyond_the_file_are_refused_before_memory_is_taken(tmp_path):
    config = Config(ch=4000, n_res=1, n_dis=4, img_size=32, recipe='published')
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


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


@pytest.mark.parametrize('place', ['genA2B', 'config', 'optimizers', 'extra'])
@pytest.mark.parametrize('archive', [True, False])
def test_no_place_in_a_file_runs_code(contents, place, archive, tmp_path):
    content = contents['transfer'] | {place: {'x': Runs(tmp_path / 'ran')}}
    path = tmp_path / 'x.pt'
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    assert not loads(path)
    path.write_bytes(pickle.dumps(content))
    assert not loads(path)
    assert not (tmp_path / 'ran').exists()
