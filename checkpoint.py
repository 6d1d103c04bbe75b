"""Checkpoints: our files, the authors' files and how their names become ours, choosing a file.

    python checkpoint.py SOURCE TARGET

writes the part of a checkpoint that test needs (genA2B alone, half precision) to a small file.
"""
import hashlib
import math
import os
import re
import sys
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch

from networks import build_networks
from settings import (ARCHITECTURE_FIELDS, CHOICES, DEFAULTS, DISCRIMINATORS, MASK_NETWORK,
                      NETWORKS_OF, PLACE_FIELDS, PROJECT, Architecture, Settings)
from utils import UserError

FORMAT = 'label-transfer 1'
MODEL_FOLDER = PROJECT / 'model'


@dataclass
class Checkpoint:
    """What a file holds, under our names, on the CPU."""

    path: Path
    networks: dict  # network name -> state dict; at least the one that makes masks
    settings: dict  # fields of Settings, at least those of the architecture
    iteration: int = 0
    best_ja: float | None = None  # best JA on val until then, percent
    best_score: float | None = None  # without val labels: best label-free score, percent
    optimizers: dict = field(default_factory=dict)  # generators, discriminators -> state dict
    random_state: dict = field(default_factory=dict)
    progress: dict = field(default_factory=dict)  # what else a resumed run has to know


# ------------------------------------------------------------------- the authors' names as ours


def _decoder(theirs, ours):
    return {f'{theirs}.2': f'{ours}.to_half.conv', f'{theirs}.3': f'{ours}.to_half.norm',
            f'{theirs}.7': f'{ours}.to_full.conv', f'{theirs}.8': f'{ours}.to_full.norm',
            f'{theirs}.11': f'{ours}.output'}


def _residual_block(theirs, ours, layers=('conv1', 'norm1', 'conv2', 'norm2')):
    return {f'{theirs}.{their_layer}': f'{ours}.{our_layer}'
            for their_layer, our_layer in zip(layers, ('conv1', 'norm1', 'conv2', 'norm2'))}


# 'conv_block.1' and '.5' are the convolutions; the norms between them have no parameters
_PLAIN = ('conv_block.1', 'conv_block.2', 'conv_block.5', 'conv_block.6')

_ATTENTION = {'gap_fc': 'class_attention.average_logit', 'gmp_fc': 'class_attention.maximum_logit',
              'conv1x1': 'class_attention.merge'}


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
        table |= _residual_block(f'DownBlock.{12 + i}', f'encoder.residual.{i}', _PLAIN)
        table |= _residual_block(f'UpBlock1_{i + 1}', f'translation_blocks.{i}')
    if generation == 'first':
        table |= {'gamma': 'scale_shift.gamma', 'beta': 'scale_shift.beta'}
        for i in range(2):
            table |= _residual_block(f'UpBlock5.{i}', f'attention_residual.{i}', _PLAIN)
        table |= _decoder('UpBlock2', 'content_decoder')
        table |= _decoder('UpBlock3', 'mask_decoder')
        table |= _decoder('UpBlock4', 'recon_decoder')
    else:
        table |= {'gamma1': 'scale_shift.gamma', 'beta1': 'scale_shift.beta',
                  'Split_layer.0': 'split.0.conv', 'Split_layer.1': 'split.0.norm',
                  'Split_layer.3': 'split.1.conv', 'Split_layer.4': 'split.1.norm',
                  'conv2x1.1': 'mask_output'}
        for i in range(n_res):
            table |= _residual_block(f'recon_middle_{i + 1}', f'recon_blocks.{i}')
        table |= _decoder('Decode_image', 'fake_decoder')
        table |= _decoder('Decode_recon', 'recon_decoder')
    return table


# spectral norm keeps its three tensors under other names in today's torch
_SPECTRAL = {'weight_orig': 'parametrizations.weight.original',
             'weight_u': 'parametrizations.weight.0._u',
             'weight_v': 'parametrizations.weight.0._v'}

# in the second generation's files, but without part in any result
_WITHOUT_PART = re.compile(r'(gamma2|beta2|Mask_Layer(_UP|_DOWN)?_\d+)\.')


def _translate(path: Path, states: dict, architecture: Architecture) -> dict:
    translated, unknown = {}, []
    for network, state in states.items():
        layers = authors_layers(network, architecture.generation, architecture.n_res,
                                architecture.n_dis)
        ours = translated[network] = {}
        for key, tensor in state.items():
            layer, _, parameter = key.rpartition('.')
            if layer in layers:
                ours[f'{layers[layer]}.{_SPECTRAL.get(parameter, parameter)}'] = tensor
            elif architecture.generation == 'first' or not _WITHOUT_PART.match(key):
                unknown.append(f'{network}.{key}')
    if unknown:
        raise UserError(f'{path}: unknown keys {", ".join(unknown)}; this is neither a first nor '
                        'a second generation checkpoint of the method')
    return translated


def _read_off_architecture(path: Path, states: dict) -> Architecture:
    """Architecture of an authors' file, from the names and shapes of its tensors."""
    generator = states['genA2B']
    try:
        generation = 'second' if 'Split_layer.0.weight' in generator else 'first'
        ch, inputs = generator['DownBlock.1.weight'].shape[:2]
        hidden = generator['FC.0.weight'].shape[1]
        side = (hidden / (4 * ch)) ** 0.5  # of the features that the first linear sees, if not light
    except (KeyError, ValueError, IndexError, ZeroDivisionError):
        raise UserError(f'{path}: genA2B is not a generator of this method (no DownBlock.1.weight '
                        'or FC.0.weight of the right form)') from None
    n_res = sum(bool(re.fullmatch(r'UpBlock1_\d+\.conv1\.weight', key)) for key in generator)
    light = hidden == 4 * ch
    img_size = DEFAULTS['img_size'][0]
    if not light:
        img_size = 4 * round(side)
    n_dis = DEFAULTS['n_dis'][0]
    for name, less in (('disGA', 0), ('disGB', 0), ('disLA', 2), ('disLB', 2)):
        if name in states:
            n_dis = less + sum(bool(re.fullmatch(r'model\.\d+\.weight_orig', key))
                               for key in states[name])
            break
    return Architecture(generation, int(ch), n_res, light, n_dis, img_size,
                        int(inputs) // (2 if generation == 'first' else 1), 'published')


# -------------------------------------------------------------------------------------- reading


def read(path: Path) -> Checkpoint:
    """Read our file or an authors' one; never runs code from it (weights_only).

    Raises UserError, one line, for anything that is not a whole checkpoint of either kind.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'{path}: {"a folder, not a" if path.is_dir() else "no such"} checkpoint file')
    _refuse_packed(path)
    try:
        with warnings.catch_warnings():  # of torch, about files that are refused below anyway
            warnings.simplefilter('ignore')
            content = torch.load(path, map_location='cpu', weights_only=True)
    except PermissionError as error:
        raise UserError(f'{path}: cannot be read: {error.strerror}') from error
    except Exception as error:  # torch raises many kinds for a broken file; all mean the same
        if 'global' in str(error).lower():  # it names something to call
            raise UserError(f'{path}: refused: it holds more than tensors and plain values, '
                            'and loading it could run code') from None
        raise UserError(f'{path}: not a checkpoint, or a truncated one') from None

    states = {name: content[name] for names in NETWORKS_OF.values() for name in names
              if name in content} if isinstance(content, dict) else {}
    for name, state in states.items():
        if not isinstance(state, dict) or not all(
                isinstance(key, str) and isinstance(value, torch.Tensor)
                for key, value in state.items()):
            raise UserError(f'{path}: {name} is not a state dict (names to tensors)')
    _refuse_inflated(path, states)
    ours = content.get('format') == FORMAT if isinstance(content, dict) else False
    if 'genA2B' not in states and not (ours and set(MASK_NETWORK.values()) & set(states)):
        raise UserError(f'{path}: holds no network genA2B; not a checkpoint of this method')

    if ours:
        if not isinstance(content.get('iteration'), int) or not 0 <= content['iteration'] < 10**9:
            raise UserError(f'{path}: does not say its iteration; damaged')
        checkpoint = Checkpoint(path, states, _checked_settings(path, content.get('settings')),
                                content['iteration'],
                                *(_number(content.get(name)) for name in ('best_ja', 'best_score')),
                                *(part if isinstance(part := content.get(name), dict) else {}
                                  for name in ('optimizers', 'random_state', 'progress')))
        if mask_network_name(checkpoint) not in states:
            raise UserError(f'{path}: holds no network {mask_network_name(checkpoint)}; damaged')
    else:
        architecture = _read_off_architecture(path, states)
        named = re.fullmatch(r'(.+)_params_(\d+)', path.stem)
        checkpoint = Checkpoint(path, _translate(path, states, architecture),
                                {'recipe': 'published'} | {name: getattr(architecture, name)
                                                           for name in ARCHITECTURE_FIELDS},
                                int(named[2]) if named else 0)
        checkpoint.settings['dataset'] = named[1] if named else 'unnamed'  # for its presets
        if architecture.light:  # then the size is not in the file, and the preset's holds
            del checkpoint.settings['img_size']
        if not set(DISCRIMINATORS) & set(states):
            del checkpoint.settings['n_dis']
    return checkpoint


def _number(value) -> float | None:
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def _refuse_packed(path: Path) -> None:
    """torch writes its archives without compression; a packed one may unfold to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # of the time before archives, or broken, which torch will say
    if (any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            or sum(entry.file_size for entry in entries) > path.stat().st_size):
        raise UserError(f'{path}: refused: a packed archive, which torch does not write')


def _refuse_inflated(path: Path, states: dict) -> None:
    """Tensors have to be plain, and no larger than what the file holds of them."""
    tensors = [tensor for state in states.values() for tensor in state.values()]
    if any(tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex()
           or tensor.device.type != 'cpu' for tensor in tensors):
        raise UserError(f'{path}: refused: holds tensors of a kind that no network has')
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors) > path.stat().st_size:
        raise UserError(f'{path}: refused: its tensors are larger than the file')


def _checked_settings(path: Path, saved) -> dict:
    """The saved fields of Settings, each of the type it has to be."""
    kinds = {'str': (str,), 'int': (int,), 'float': (float, int), 'bool': (bool,)}
    types = {name: kinds[kind if isinstance(kind, str) else kind.__name__]
             for base in (Architecture, Settings) for name, kind in base.__annotations__.items()
             if name not in PLACE_FIELDS}
    types['img_size'] = (int, list, tuple)
    if isinstance(saved, dict):  # files of before there was a choice do not say it
        saved = {'scheme': 'published', 'recipe': 'published', 'student': 'unet'} | saved
    if not isinstance(saved, dict) or not set(ARCHITECTURE_FIELDS) <= set(saved) or not all(
            isinstance(value, types[name]) for name, value in saved.items() if name in types) or any(
            saved.get(name, words[0]) not in words for name, words in CHOICES.items()) or (
            not isinstance(saved['img_size'], int) and
            (len(saved['img_size']) != 2
             or not all(isinstance(side, int) for side in saved['img_size']))):
        raise UserError(f'{path}: its settings are missing or damaged')
    return {name: value for name, value in saved.items() if name in types}


def _check_fit(checkpoint: Checkpoint, name: str, network: torch.nn.Module) -> None:
    """Raises UserError where keys or shapes in the file are not the network's."""
    state = checkpoint.networks[name]
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    given = {key: tuple(tensor.shape) for key, tensor in state.items()}
    wrong = [f'{key} is {given.get(key, "missing")} instead of {shapes.get(key, "absent")}'
             for key in sorted(shapes.keys() | given.keys()) if shapes.get(key) != given.get(key)]
    if wrong:
        more = f' (and {len(wrong) - 1} more)' if len(wrong) > 1 else ''
        raise UserError(f'{checkpoint.path}: {name} does not fit: {wrong[0]}{more}')
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise UserError(f'{checkpoint.path}: {name} holds numbers that are not finite; damaged')


def load_networks(networks: torch.nn.ModuleDict, checkpoint: Checkpoint) -> None:
    """Copy the file's tensors into the networks of the same names; raises UserError before."""
    names = [name for name in networks if name in checkpoint.networks]
    for name in names:
        _check_fit(checkpoint, name, networks[name])
    for name in names:
        networks[name].load_state_dict(checkpoint.networks[name])


def take_network(checkpoint: Checkpoint, architecture: Architecture, name: str) -> torch.nn.Module:
    """The generator, locator or student of that name, made of the file's own tensors: no memory and
    no random number is spent before it is known to fit. Raises UserError."""
    tensors = len(checkpoint.networks[name])
    if architecture.n_res > tensors:  # each block has some
        raise UserError(f'{checkpoint.path}: damaged: {tensors} tensors cannot be '
                        f'{architecture.n_res} residual blocks')
    try:
        with torch.device('meta'):
            network = build_networks(architecture, [name])[name]
    except (RuntimeError, ValueError, OverflowError):
        raise UserError(f'{checkpoint.path}: damaged: no network can be as its settings say') \
            from None
    _check_fit(checkpoint, name, network)
    network.load_state_dict(checkpoint.networks[name], assign=True)
    return network.float()  # files for testing hold half precision


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Take over Adam's moments; the rates are the run's own. Raises ValueError or KeyError where
    they do not belong to the optimiser's parameters."""
    own = optimizer.state_dict()['param_groups']
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    if not isinstance(saved, dict) or not isinstance(saved['state'], dict):
        raise ValueError('no moments')
    for number, moments in saved['state'].items():
        if number not in range(len(parameters)):
            raise ValueError('moments of other parameters')
        shapes = {'step': (), 'exp_avg': parameters[number].shape,
                  'exp_avg_sq': parameters[number].shape}
        if {name: tuple(tensor.shape) for name, tensor in moments.items()} != {
                name: tuple(shape) for name, shape in shapes.items()} or not all(
                tensor.isfinite().all() for tensor in moments.values()):
            raise ValueError('moments of other parameters')
    optimizer.load_state_dict({'state': saved['state'], 'param_groups': own})


# -------------------------------------------------------------------------------------- writing


LEFTOVER = '.tmp'  # ending of files that are not whole yet; hidden, so that nothing picks them up


def clear_leftovers(folder: Path) -> None:
    """Delete what a killed run left half-written."""
    for path in folder.glob(f'.*{LEFTOVER}'):
        path.unlink()


def write_atomically(content: dict, path: Path) -> None:
    """torch.save so that `path` holds either its old content or all of the new."""
    temporary = path.with_name(f'.{path.name}{LEFTOVER}')
    try:
        with open(temporary, 'wb') as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch hides what the disk said behind a RuntimeError
        reason = getattr(error, 'strerror', None) or 'the disk is full, or the folder went away'
        raise OSError(f'{path}: cannot be written: {reason}') from error
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:  # a folder that may no longer be written to
            pass


def file_name(dataset: str, iteration: int) -> str:
    return f'{dataset}_params_{iteration:07d}.pt'


def save(path: Path, networks: torch.nn.ModuleDict, settings: Settings, iteration: int,
         best_ja: float | None, best_score: float | None, optimizers: dict,
         progress: dict | None = None) -> None:
    """Write everything a run needs to go on."""
    random_state = {'torch': torch.get_rng_state()}
    if torch.cuda.is_available():
        random_state['cuda'] = torch.cuda.get_rng_state_all()
    write_atomically({
        'format': FORMAT,
        **{name: network.state_dict() for name, network in networks.items()},
        'optimizers': {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
        'iteration': iteration, 'best_ja': best_ja, 'best_score': best_score,
        'settings': settings.of_the_run(), 'progress': progress or {},
        'random_state': random_state}, path)


def mark_best(path: Path) -> None:
    """Let best.pt beside `path` be the same file: a link where the disk can, else a copy."""
    best = path.with_name('best.pt')
    if best.exists() and best.samefile(path):
        return
    temporary = path.with_name(f'.best.pt{LEFTOVER}')
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        temporary.write_bytes(path.read_bytes())
    os.replace(temporary, best)


def prune(folder: Path, dataset: str, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints; best.pt stays."""
    for path in numbered(folder, dataset)[:-keep]:
        path.unlink()


def write_test_part(checkpoint: Checkpoint, target: Path, half: bool = True) -> None:
    """The one network that makes masks of disease pictures, by default in half precision."""
    name = mask_network_name(checkpoint)
    defaults = {name: DEFAULTS[name][0] for name in ('img_size', 'n_dis')}
    write_atomically({
        'format': FORMAT, 'iteration': checkpoint.iteration, 'best_ja': checkpoint.best_ja,
        'settings': defaults | checkpoint.settings,
        name: {key: tensor.half() if half else tensor
               for key, tensor in checkpoint.networks[name].items()}}, target)


def mask_network_name(checkpoint: Checkpoint) -> str:
    """The network that makes the masks of disease pictures."""
    return MASK_NETWORK[checkpoint.settings.get('scheme', 'published')]


def fingerprint(checkpoint: Checkpoint) -> str:
    """16 hex digits that tell the mask-making networks of two files apart, whatever else is in
    the files and wherever they lie."""
    digest = hashlib.sha256()
    for key, tensor in sorted(checkpoint.networks[mask_network_name(checkpoint)].items()):
        digest.update(key.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


# ------------------------------------------------------------------------------- choosing a file


def numbered(folder: Path, dataset: str) -> list[Path]:
    """`<dataset>_params_<digits>.pt` in a folder, oldest iteration first."""
    pattern = re.compile(re.escape(dataset) + r'_params_(\d+)\.pt')
    found = [(int(match[1]), path) for path in folder.glob('*.pt')
             if (match := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def choose_for_test(result_folder: Path, dataset: str, stage: int) -> Path:
    """best.pt of the run, else its newest checkpoint, else (stage 1) the newest of model/."""
    run_folder = result_folder / f'model{stage}'
    if (run_folder / 'best.pt').is_file():
        return run_folder / 'best.pt'
    folders = [run_folder, MODEL_FOLDER] if stage == 1 else [run_folder]
    for folder in folders:
        if found := numbered(folder, dataset):
            return found[-1]
    looked_for = [f'{run_folder}/best.pt', *(f'{folder}/{dataset}_params_*.pt'
                                             for folder in folders)]
    raise UserError(f'no checkpoint of stage {stage} for {dataset}: looked for '
                    f'{", ".join(looked_for)}; train first, or name a file with --checkpoint')


if __name__ == '__main__':
    if len(sys.argv) != 3:
        sys.exit('usage: python checkpoint.py SOURCE TARGET')
    try:
        write_test_part(read(Path(sys.argv[1])), Path(sys.argv[2]))
    except (UserError, OSError) as problem:
        print(f'error: {problem}', file=sys.stderr)
        sys.exit(2)
