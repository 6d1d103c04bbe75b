"""Checkpoints: our files, the authors' files and how their names become ours, choosing a file.

    python checkpoint.py SOURCE TARGET

writes what a test needs of it (the network that makes the masks, in half precision)."""
import hashlib
import json
import math
import os
import re
import sys
import warnings
import zipfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import config as options
from config import DISCRIMINATORS, MASK_NETWORK, OPTIONS, Config
from dataset import training_contents
from networks import build_networks, is_encoder
from runtime.files import TEXT, atomic_write, make_folder, remove_temporary
from runtime.preflight import check_mask_memory
from runtime.runs import numbered, record_stage
from utils import UserError, printable, similar_word

FORMAT = 'label-transfer 2'
EARLIER_FORMAT = 'label-transfer 1'
MODEL_FOLDER = options.PROJECT / 'model'
States = dict[str, dict[str, Tensor]]  # network name -> its state dict


@dataclass
class Checkpoint:
    """What a file holds, under our names, on the CPU."""
    path: Path
    networks: States  # at least the network that makes the masks
    config: dict[str, Any]  # option -> value, at least those that fix the mask network's shapes
    iteration: int = 0
    best_ja: float | None = None  # best JA on val so far, percent
    best_score: float | None = None  # without val labels: best label-free score so far, percent
    optimizers: dict[str, dict] = field(default_factory=dict)  # name -> state dict
    random_state: dict[str, Any] = field(default_factory=dict)  # 'torch' and perhaps 'cuda'
    progress: dict[str, Any] = field(default_factory=dict)  # what else a resumed run needs


# parts of the authors' networks: their name of each layer -> ours
_DECODER = {'2': 'to_half.conv', '3': 'to_half.norm', '7': 'to_full.conv', '8': 'to_full.norm',
            '11': 'output'}
_RESIDUAL = {name: name for name in ('conv1', 'norm1', 'conv2', 'norm2')}
_NUMBERED = {'conv_block.1': 'conv1', 'conv_block.5': 'conv2'}  # residual, norms without parameters
_ATTENTION = {'gap_fc': 'class_attention.average_logit', 'gmp_fc': 'class_attention.maximum_logit',
              'conv1x1': 'class_attention.merge'}


def _layers(theirs: str, ours: str, layers: dict[str, str]) -> dict[str, str]:
    return {f'{theirs}.{their}': f'{ours}.{our}' for their, our in layers.items()}


def authors_layers(network: str, generation: str, n_res: int, n_dis: int) -> dict[str, str]:
    """The translation table: the authors' name of each layer with parameters -> ours."""
    if network in DISCRIMINATORS:
        convolutions = n_dis if network.startswith('disG') else n_dis - 2
        return {**{f'model.{3 * i + 1}': f'features.{2 * i}' for i in range(convolutions)},
                **_ATTENTION, 'conv': 'output'}
    table = {'DownBlock.1': 'encoder.stem.conv', 'DownBlock.5': 'encoder.to_half.conv',
             'DownBlock.9': 'encoder.to_quarter.conv', **_ATTENTION,
             'FC.0': 'scale_shift.hidden.0', 'FC.2': 'scale_shift.hidden.2'}
    for i in range(n_res):
        table |= _layers(f'DownBlock.{12 + i}', f'encoder.residual.{i}', _NUMBERED)
        table |= _layers(f'UpBlock1_{i + 1}', f'translation_blocks.{i}', _RESIDUAL)
    if generation == 'first':
        table |= {'gamma': 'scale_shift.gamma', 'beta': 'scale_shift.beta'}
        for i in range(2):
            table |= _layers(f'UpBlock5.{i}', f'attention_residual.{i}', _NUMBERED)
        decoders = {'UpBlock2': 'content', 'UpBlock3': 'mask', 'UpBlock4': 'recon'}
    else:
        table |= {'gamma1': 'scale_shift.gamma', 'beta1': 'scale_shift.beta',
                  'Split_layer.0': 'split.0.conv', 'Split_layer.1': 'split.0.norm',
                  'Split_layer.3': 'split.1.conv', 'Split_layer.4': 'split.1.norm',
                  'conv2x1.1': 'mask_output'}
        for i in range(n_res):
            table |= _layers(f'recon_middle_{i + 1}', f'recon_blocks.{i}', _RESIDUAL)
        decoders = {'Decode_image': 'fake', 'Decode_recon': 'recon'}
    for theirs, ours in decoders.items():
        table |= _layers(theirs, f'{ours}_decoder', _DECODER)
    return table


# spectral norm keeps its three tensors under other names in today's torch
_SPECTRAL = {'weight_orig': 'parametrizations.weight.original',
             'weight_u': 'parametrizations.weight.0._u', 'weight_v': 'parametrizations.weight.0._v'}
# layers in the second generation's files that have no effect on any result
_UNUSED = re.compile(r'(gamma2|beta2|Mask_Layer(_UP|_DOWN)?_\d+)\.')


def _rename_authors_tensors(path: Path, states: States, config: dict[str, Any]) -> States:
    """The networks of an authors' file under our names; raises UserError for unknown keys."""
    renamed, unknown = {}, []
    generation, n_res = config['generation'], config['n_res']
    for network, state in states.items():
        layers = authors_layers(network, generation, n_res, config.get('n_dis', 0))
        ours = renamed[network] = {}
        for key, tensor in state.items():
            layer, _, parameter = key.rpartition('.')
            if layer in layers:
                ours[f'{layers[layer]}.{_SPECTRAL.get(parameter, parameter)}'] = tensor
            elif generation == 'first' or not _UNUSED.match(key):
                unknown.append(f'{network}.{key}')
    if unknown:
        raise UserError(f'{path}: unknown keys {", ".join(unknown)}; this is neither a first nor '
                        'a second generation checkpoint of the method')
    return renamed


def _read_off_architecture(path: Path, states: States) -> dict[str, Any]:
    """The options that fix the shapes of an authors' networks, from names and shapes of tensors: no
    `img_size` if they are light, no `n_dis` without discriminators. Raises UserError."""
    generator = states['genA2B']
    try:
        generation = 'second' if 'Split_layer.0.weight' in generator else 'first'
        ch, inputs = generator['DownBlock.1.weight'].shape[:2]
        hidden = generator['FC.0.weight'].shape[1]
        side = (hidden / (4 * ch)) ** 0.5  # of the features that FC.0 sees, if not light
    except (KeyError, ValueError, IndexError, ZeroDivisionError):
        raise UserError(f'{path}: genA2B is not a generator of this method (no DownBlock.1.weight '
                        'or FC.0.weight of the right form)') from None
    config = {'generation': generation, 'ch': int(ch), 'light': hidden == 4 * ch,
              'n_res': len([key for key in generator
                            if re.fullmatch(r'UpBlock1_\d+\.conv1\.weight', key)]),
              'img_ch': int(inputs) // (2 if generation == 'first' else 1),
              'encoder': OPTIONS['encoder'].default}
    if not config['light']:
        config['img_size'] = 4 * round(side)
    if name := next((name for name in DISCRIMINATORS if name in states), None):
        convolutions = [key for key in states[name]
                        if re.fullmatch(r'model\.\d+\.weight_orig', key)]
        config['n_dis'] = len(convolutions) + (0 if name.startswith('disG') else 2)
    return config


def read(path: Path) -> Checkpoint:
    """Read our file or an authors' one; never runs code from it (weights_only). Raises UserError,
    one line, for anything that is not a whole checkpoint of either kind."""
    path = Path(path)
    if not path.is_file():
        what = 'a folder, not a' if path.is_dir() else 'no such'
        raise UserError(f'{path}: {what} checkpoint file')
    _refuse_other_archives(path)
    content = _load(path)
    content = content if isinstance(content, dict) else {}
    form, is_ours = content.get('format'), content.get('format') == FORMAT
    if isinstance(form, str) and form.startswith('label-transfer ') and not is_ours:
        kind, advice = (('an earlier', 'train again') if form == EARLIER_FORMAT
                        else ('a later', 'update this program'))
        raise UserError(f'{path}: made by {kind} version of this program, whose files this one '
                        f'does not read; {advice}')
    states = _states(path, content)
    _refuse_expanded(path, states)
    if 'genA2B' not in states and not (is_ours and set(MASK_NETWORK.values()) & set(states)):
        raise UserError(f'{path}: holds no network genA2B; not a checkpoint of this method')
    return (_our_checkpoint if is_ours else _authors_checkpoint)(path, content, states)


def _load(path: Path) -> Any:
    """What torch reads from the file: tensors and plain values; raises UserError."""
    try:
        with warnings.catch_warnings():  # of torch, about files that are refused below anyway
            warnings.simplefilter('ignore')
            return torch.load(path, map_location='cpu', weights_only=True)
    except PermissionError as error:
        raise UserError(f'{path}: cannot be read: {error.strerror}') from error
    except Exception as error:  # torch raises many kinds for a broken file; all mean the same
        if 'global' in str(error).lower():  # it names something to call
            raise UserError(f'{path}: refused: it holds more than tensors and plain values, '
                            'and loading it could run code') from None
        raise UserError(f'{path}: not a checkpoint, or a truncated one') from None


# what DataParallel and torch.compile put before the names of what they wrap
_WRAPPERS = re.compile(r'(?<![^.])(?:module|_orig_mod)\.')
# kinds of numbers that networks of ours have; whole ones and booleans are counts and switches
_WEIGHTS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DTYPES = (*_WEIGHTS, torch.int64, torch.bool)


def _states(path: Path, content: dict[str, Any]) -> States:
    """The state dicts of all networks in a file by network name; raises UserError."""
    states = {name: content[name] for names in options.NETWORKS_OF.values() for name in names
              if name in content}
    for name, state in states.items():
        if not isinstance(state, dict) or not all(
                isinstance(key, str) and isinstance(state[key], Tensor) for key in state):
            raise UserError(f'{path}: {name} is not a state dict (names to tensors)')
        keys = [_WRAPPERS.sub('', key) for key in state]
        if all(key.startswith('model.') for key in keys):  # of Lightning; not so in a discriminator
            keys = [key.removeprefix('model.') for key in keys]
        states[name] = dict(zip(keys, (each.detach() for each in state.values()), strict=True))
        if len(states[name]) < len(state):
            raise UserError(f'{path}: {name} holds some tensors twice, with and without module. '
                            'or _orig_mod. before their names')
    return states


def _our_checkpoint(path: Path, content: dict[str, Any], states: States) -> Checkpoint:
    """What a file of FORMAT holds; raises UserError."""
    iteration = content.get('iteration')
    if type(iteration) is not int or not 0 <= iteration < 10**9:
        raise UserError(f'{path}: does not say its iteration; damaged')
    scores = {name: value for name in ('best_ja', 'best_score')
              if type(value := content.get(name)) in (int, float) and abs(value) < math.inf}
    parts = {name: content[name] for name in ('optimizers', 'random_state', 'progress')
             if isinstance(content.get(name), dict)}
    config = _checked_config(path, content.get('config'))
    checkpoint = Checkpoint(path, states, config, iteration, **scores, **parts)
    if mask_network_name(checkpoint) not in states:
        raise UserError(f'{path}: holds no network {mask_network_name(checkpoint)}; damaged')
    return checkpoint


def _authors_checkpoint(path: Path, content: dict[str, Any], states: States) -> Checkpoint:
    """What a file of the authors holds; its name says data set and iteration. Raises UserError."""
    config = _read_off_architecture(path, states)
    networks = _rename_authors_tensors(path, states, config)
    name = re.fullmatch(r'(.+)_params_(\d+)', path.stem)
    config |= {'recipe': 'published', 'dataset': name[1] if name else 'unnamed'}  # for its presets
    return Checkpoint(path, networks, config, int(name[2]) if name else 0)


def _refuse_other_archives(path: Path) -> None:
    """Raises UserError for a compressed archive, which torch does not write and which may expand to
    any size, and for TorchScript, a program."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # from before torch wrote archives, or broken, which torch will find
    if any(re.search(r'(^|/)(constants\.pkl|model\.json|code/.*)$', entry.filename)
           for entry in entries):
        raise UserError(f'{path}: refused: TorchScript, a program, not a checkpoint; give a file '
                        'that --phase train or the authors wrote')
    if (any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            or sum(entry.file_size for entry in entries) > path.stat().st_size):
        raise UserError(f'{path}: refused: a compressed archive, which torch does not write')


def _refuse_expanded(path: Path, states: States) -> None:
    """Raises UserError where tensors are not plain, or those of one network larger than the file;
    several networks may share theirs."""
    for name, state in states.items():
        for key, tensor in state.items():
            if not _is_plain(tensor):
                kind = str(tensor.dtype).removeprefix('torch.')
                raise UserError(f'{path}: refused: holds tensors of a kind that no network has, as '
                                f'{name}.{key} ({kind})')
        if sum(tensor.numel() * tensor.element_size() for tensor in state.values()
               ) > path.stat().st_size:
            raise UserError(f'{path}: refused: its tensors are larger than the file')


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is of a kind that networks have."""
    return (type(tensor) is Tensor and not tensor.is_nested and tensor.layout == torch.strided
            and tensor.dtype in _DTYPES and tensor.device.type == 'cpu' and not tensor.is_neg())


def _is_valid(name: str, value: Any) -> bool:
    """Whether an option may have this value: by its type, choices and bounds."""
    try:
        options.check_value(OPTIONS[name], value)
    except (UserError, ValueError):  # Python prints no number of thousands of digits
        return False
    return True


def _checked_config(path: Path, saved: Any) -> dict[str, Any]:
    """The options that our files keep (config.SAVED); unknown names are dropped. Raises UserError
    for a value that its option cannot have, and where one that shapes the networks is missing."""
    if not isinstance(saved, dict):
        raise UserError(f'{path}: holds no config; damaged')
    saved = {'encoder': 'none'} | saved  # of files older than this option
    config = {name: saved[name] for name in options.SAVED if name in saved}
    for name in (*options.ARCHITECTURE, 'recipe', *config):
        if name not in config or not _is_valid(name, config[name]):
            raise UserError(f'{path}: its config has no valid {name}; damaged')
    if not is_encoder(config['encoder']):
        raise UserError(f'{path}: its encoder {config["encoder"]!r} is no network of timm; damaged')
    return config


def _check_fit(checkpoint: Checkpoint, name: str, network: nn.Module) -> None:
    """Raises UserError where keys or shapes in the file are not the network's."""
    state = checkpoint.networks[name]
    of_network = network.state_dict()
    expected, shapes = ({key: tuple(tensor.shape) for key, tensor in tensors.items()}
                        for tensors in (of_network, state))
    wrong = [f'{key} is {shapes.get(key, "missing")} instead of {expected.get(key, "absent")}'
             for key in sorted(expected.keys() | shapes.keys())
             if expected.get(key) != shapes.get(key)]
    if wrong:
        more = f' (and {len(wrong) - 1} more)' if len(wrong) > 1 else ''
        raise UserError(f'{checkpoint.path}: {name} does not fit: {wrong[0]}{more}')
    for key, tensor in state.items():
        own = of_network[key]
        if tensor.dtype not in (*(_WEIGHTS if own.is_floating_point() or not own.ndim else ()),
                                own.dtype):  # earlier files held counters in half precision
            kind = str(tensor.dtype).removeprefix('torch.')
            raise UserError(f'{checkpoint.path}: {name} does not fit: {key} holds {kind}')
    if not all(tensor.float().isfinite().all() for tensor in state.values()):
        raise UserError(f'{checkpoint.path}: {name} holds numbers that are not finite; damaged')


def load_networks(networks: nn.ModuleDict, checkpoint: Checkpoint) -> None:
    """Copy the tensors into the networks of the same names; raises UserError before any changed."""
    names = [name for name in networks if name in checkpoint.networks]
    for name in names:
        _check_fit(checkpoint, name, networks[name])
    for name in names:
        networks[name].load_state_dict(checkpoint.networks[name])


def take_network(checkpoint: Checkpoint, config: Config, name: str) -> nn.Module:
    """The network of that name (no discriminator) with the file's own tensors, in float32. No
    memory and no random number is used before it is known to fit. Raises UserError."""
    check_mask_memory(config, checkpoint.path)
    count = len(checkpoint.networks[name])
    if config.n_res > count:  # each block has at least one tensor
        raise UserError(f'{checkpoint.path}: damaged: {count} tensors cannot be '
                        f'{config.n_res} residual blocks')
    try:
        with torch.device('meta'):
            network = build_networks(config, [name])[name]
    except (RuntimeError, ValueError, OverflowError):
        raise UserError(f'{checkpoint.path}: damaged: no network has the shapes that its config '
                        'says') from None
    _check_fit(checkpoint, name, network)
    network.load_state_dict(checkpoint.networks[name], assign=True)
    return network.float()  # files for testing hold half precision


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load Adam's moments; the learning rates stay the run's own. Raises ValueError or KeyError
    where the moments do not belong to the optimizer's parameters."""
    groups = optimizer.state_dict()['param_groups']
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    if not isinstance(saved, dict) or not isinstance(saved['state'], dict):
        raise ValueError('no moments')
    for number, moments in saved['state'].items():
        if number not in range(len(parameters)):
            raise ValueError('moments of other parameters')
        shape = tuple(parameters[number].shape)
        expected = {'step': (), 'exp_avg': shape, 'exp_avg_sq': shape}
        if ({name: tuple(tensor.shape) for name, tensor in moments.items()} != expected
                or not all(tensor.dtype in _WEIGHTS and tensor.isfinite().all()
                           for tensor in moments.values())):
            raise ValueError('moments of other parameters')
    optimizer.load_state_dict({'state': saved['state'], 'param_groups': groups})


def clear_leftovers(folder: Path) -> None:
    """Delete what a killed run left half written in its folder."""
    remove_temporary(folder)


def write(content: dict[str, Any], path: Path) -> None:
    """torch.save, whole or not at all, even in a power cut. Raises OSError naming the file."""
    try:
        with atomic_write(path, durable=True) as temporary, open(temporary, 'wb') as file:
            torch.save(content, file)
    except RuntimeError as error:  # torch hides the disk's error in it
        raise OSError(f'{path}: cannot be written: the disk is full, or the folder went away; '
                      'make room on this disk') from error


def file_name(dataset: str, iteration: int) -> str:
    return f'{dataset}_params_{iteration:07d}.pt'


def save(path: Path, networks: nn.ModuleDict, config: Config, iteration: int,
         best_ja: float | None, best_score: float | None,
         optimizers: dict[str, torch.optim.Optimizer],
         progress: dict[str, Any] | None = None) -> None:
    """Write everything that a run needs to go on and, beside the run's log, what it was trained on.
    Raises OSError naming the file."""
    random_state = {'torch': torch.get_rng_state()}
    if torch.cuda.is_available():
        random_state['cuda'] = torch.cuda.get_rng_state_all()
    write({'format': FORMAT,
           **{name: network.state_dict() for name, network in networks.items()},
           'optimizers': {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
           'iteration': iteration, 'best_ja': best_ja, 'best_score': best_score,
           'config': config.saved_values(), 'progress': progress or {},
           'random_state': random_state}, path)
    if path.parent == config.run_folder:
        record_stage(config)
        _record_data(config)


def data_record(config: Config) -> Path:
    """The file that says what images a run was trained on (dataset.training_contents)."""
    return config.result_folder / f'log{config.stage}' / 'data.json'


def _record_data(config: Config) -> None:
    path = data_record(config)
    if path.is_file():  # a resumed run keeps that of its beginning
        return
    with suppress(UserError):  # a data set that went away stops no run that has read its images
        trained_on = training_contents(config.data_folder)
        make_folder(path.parent)
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(trained_on) + '\n', **TEXT)


def mark_best(path: Path) -> None:
    """Let best.pt beside `path` be the same file: a link where the disk has links, else a copy."""
    best = path.with_name('best.pt')
    if best.exists() and best.samefile(path):
        return
    with atomic_write(best) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:
            temporary.write_bytes(path.read_bytes())


def prune(folder: Path, dataset: str, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints; best.pt stays."""
    for path in numbered(folder, dataset)[:-keep]:
        path.unlink()


def write_test_part(checkpoint: Checkpoint, target: Path, half: bool = True) -> None:
    """Write the network that makes masks, by default in half precision. Raises OSError."""
    name = mask_network_name(checkpoint)
    not_in_the_file = {name: OPTIONS[name].default for name in ('img_size', 'n_dis')}
    state = {key: tensor.half() if half and tensor.is_floating_point() else tensor
             for key, tensor in checkpoint.networks[name].items()}
    write({'format': FORMAT, 'iteration': checkpoint.iteration, 'best_ja': checkpoint.best_ja,
           'config': not_in_the_file | checkpoint.config, name: state}, target)


def mask_network_name(checkpoint: Checkpoint) -> str:
    """The network that makes the masks of disease images."""
    config = checkpoint.config  # of the authors: without the stage, but either has these networks
    return MASK_NETWORK[options.method_of(config['recipe'], config.get('stage', 1))]


def fingerprint(checkpoint: Checkpoint) -> str:
    """16 hexadecimal digits of the mask-making network, whatever else is in the file."""
    digest = hashlib.sha256()
    for key, tensor in sorted(checkpoint.networks[mask_network_name(checkpoint)].items()):
        data = tensor.contiguous().reshape(-1).view(torch.uint8)  # numpy has no bfloat16
        digest.update(key.encode() + data.numpy().tobytes())
    return digest.hexdigest()[:16]


def best_of_run(run_folder: Path, dataset: str) -> Path | None:
    """The best.pt of a run, else its newest checkpoint, if there is one."""
    if (run_folder / 'best.pt').is_file():
        return run_folder / 'best.pt'
    return next(reversed(numbered(run_folder, dataset)), None)


def choose_for_test(result_folder: Path, dataset: str, stage: int) -> Path:
    """The run's best.pt, else its newest, else (stage 1) the newest of model/. Raises UserError."""
    folders = [result_folder / f'model{stage}', *([MODEL_FOLDER] if stage == 1 else [])]
    if path := next(filter(None, (best_of_run(folder, dataset) for folder in folders)), None):
        return path
    what = f'no checkpoint of stage {stage}'
    if stage == 1 and not any(best_of_run(result_folder / f'model{n}', dataset) for n in (0, 2)):
        what, folders = 'nothing is trained', [f'{result_folder}/model*', MODEL_FOLDER]
    places = [f'{folders[0]}/best.pt', *(f'{folder}/{dataset}_params_*.pt' for folder in folders)]
    alike = similar_word(dataset, trained_datasets(result_folder.parent) - {dataset})
    raise UserError(f'{what} for {dataset}: {alike and f"did you mean --dataset {alike}? "}looked '
                    f'for {", ".join(places)}; --phase train first, or --checkpoint FILE')


def trained_datasets(results: Path) -> set[str]:
    """The data sets that a folder of results or model/ has something of."""
    in_model = (re.fullmatch(r'(.+)_params_\d+\.pt', path.name)
                for path in MODEL_FOLDER.iterdir())
    in_results = results.iterdir() if results.is_dir() else ()
    return ({match[1] for match in in_model if match}
            | {path.name for path in in_results if path.is_dir()})


if __name__ == '__main__':
    if len(sys.argv) != 3:
        sys.exit('usage: python checkpoint.py SOURCE TARGET')
    try:
        write_test_part(read(Path(sys.argv[1])), Path(sys.argv[2]))
    except (UserError, OSError) as problem:
        print(f'error: {printable(problem)}', file=sys.stderr)
        sys.exit(2)
