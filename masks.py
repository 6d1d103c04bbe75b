"""Soft masks of pictures from a trained network, and the masks that teach the next stage."""
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

import checkpoint as checkpoints
import dataset
import parallel
import pictures
from networks import make_ready
from postprocess import clear_background, teaching_target, to_bytes
from settings import (ARCHITECTURE_FIELDS, MASK_NETWORK, TEST_BATCH_SIZE, Lesions, Settings,
                      resolve)
from utils import UserError, ahead, bar_interval, cores, make_folder

FLIPS = ((3,), (2,), (2, 3))  # the axes turned round: left-right, up-down, both
SPLITS = {'trainA': 'trainA', 'valA': 'val', 'testA': 'testA'}  # of syn_<…> -> folder of pictures


class SoftMask(NamedTuple):
    """What a network makes of one picture, in the picture's own size."""

    path: Path
    mask: np.ndarray  # H×W uint8, 255 = lesion
    heatmap: Optional[np.ndarray]  # H×W float, any range
    fake: Optional[np.ndarray]  # H×W×3 uint8, translated


def autocast(settings: Settings, device: torch.device):
    """bfloat16 where it is safe with --amp, else nothing."""
    return torch.autocast(device.type, torch.bfloat16) if settings.amp else nullcontext()


def as_companion(mask: Tensor, img_ch: int) -> Tensor:
    """A stage-1 mask B×1×H×W in [-1, 1] as the second picture of a generator (published)."""
    return mask.expand(-1, img_ch, -1, -1)


def average_over_flips(network: nn.Module, inputs: list[Tensor], mask: Tensor,
                       no_side_is_up: bool = True) -> Tensor:
    """The mean of soft masks B×1×H×W over four flips of the pictures, or where they have an upright
    over the two sides; `mask` is that of no flip."""
    made = [mask.float()]
    for axes in FLIPS if no_side_is_up else FLIPS[:1]:
        flipped = [part.flip(axes) for part in inputs]
        made.append(network.predict_mask(*flipped).mask.float().flip(axes))
    return torch.stack(made).mean(0)


def teaching_targets(masks: Tensor, images: Tensor, lesions: Lesions,
                     fit: bool) -> list[np.ndarray]:
    """H×W bool each: what soft masks B×1×H×W in [-1, 1] of pictures B×C×H×W teach."""
    return [teaching_target(to_bytes(to_array(mask[0] + 1) / 2), pictures.from_tensor(image),
                            lesions, fit)
            for mask, image in zip(masks, images)]


def mask_network(checkpoint: checkpoints.Checkpoint, settings: Settings, device: torch.device,
                 name: str = '') -> nn.Module:
    """The one network of a checkpoint that makes masks of disease pictures (or the one named),
    ready to run."""
    name = name or MASK_NETWORK[settings.scheme]
    network = checkpoints.take_network(checkpoint, settings, name)
    return make_ready(nn.ModuleDict({name: network}), settings, device).eval()[name]


def soft_masks(network: nn.Module, paths: list[Path], settings: Settings, device: torch.device,
               companions: dict[str, Path] | None = None, with_pictures: bool = False,
               finish: Callable = lambda soft: soft) -> Iterator:
    """finish(SoftMask) of each picture, in order; translations only `with_pictures`.

    `companions` are the stage-1 masks by the pictures' stems, for generators that take them.
    Reading, network and finishing overlap: threads read ahead, and others resize and `finish`.
    """
    def resized(made):
        """What finish makes of one picture's outputs, in the picture's own size."""
        path, mask, heatmap, fake = made
        with Image.open(path) as picture:
            size = picture.size
        return finish(SoftMask(
            path, to_bytes(resize_map(mask, size)),
            None if heatmap is None else resize_map(heatmap[0], size),
            None if fake is None else resize_picture(pictures.from_array(fake), size)))

    made = _network_outputs(network, paths, settings, device, companions, with_pictures)
    return ahead(resized, made, cores())


def _network_outputs(network, paths, settings, device, companions, with_pictures):
    """(path, mask H×W, heatmap, translation) of each picture, as arrays."""
    order = iter(paths)
    for batch in dataset.picture_batches(paths, settings, at_a_time(settings, device), companions):
        for made in outputs(network, batch, settings, device, with_pictures):
            yield next(order), *made


@torch.inference_mode()
def outputs(network: nn.Module, batch: dict[str, Tensor], settings: Settings, device: torch.device,
            with_pictures: bool = False) -> list[tuple]:
    """Mask H×W in [0, 1], heatmap 1×h×w and translation C×H×W of each picture of a batch as
    `dataset.picture_batches` gives them; None where there is none."""
    inputs = [batch['image'].to(device)]
    if 'mask' in batch:
        inputs.append(as_companion(batch['mask'], settings.img_ch).to(device))
    fakes = None
    with autocast(settings, device):
        if with_pictures and settings.scheme == 'published':
            made = network(*inputs, recon_of=0)
            fakes = made.fake
        else:
            made = network.predict_mask(*inputs)
        masks = made.mask
        if settings.flips:
            masks = average_over_flips(network, inputs, masks, settings.no_side_is_up)
    masks = to_array(masks[:, 0])
    if settings.generation == 'second' and settings.scheme == 'published':
        masks = [clear_background(mask, image.transpose(1, 2, 0))
                 for mask, image in zip(masks, to_array(batch['image']))]
    rest = [[None] * len(masks) if part is None else to_array(part)
            for part in (made.heatmap, fakes)]
    return list(zip(masks, *rest))


def at_a_time(settings: Settings, device: torch.device) -> int:
    """Pictures that go through the network together. On a CPU few enough for a feature map of the
    first layer to stay within 16 MB: above, memory is asked of the system anew for each layer."""
    wanted = TEST_BATCH_SIZE if settings.phase == 'train' else settings.batch_size
    if device.type != 'cpu':
        return wanted
    height, width = settings.size
    return max(1, min(wanted, 2 ** 24 // (4 * settings.ch * height * width)))


def to_array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def resize_map(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A float array H×W resized bilinearly to (width, height)."""
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))


def resize_picture(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture resized bicubically to (width, height)."""
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def settings_of_network(source: checkpoints.Checkpoint, ours: Settings) -> Settings:
    """How a network of an earlier stage runs: its own shape, with this run's data, device, flips."""
    saved = {name: value for name, value in source.settings.items() if name in ARCHITECTURE_FIELDS}
    stage = source.settings.get('stage', 1)
    flips = ours.flips and stage > 0  # a locator looks at them anyway
    return resolve({'phase': 'pseudo_mask', 'stage': stage, 'dataset': ours.dataset,
                    'data_root': ours.data_root, 'flips': flips, 'turn': ours.turn, 'amp': ours.amp,
                    'compile': ours.compile, 'num_workers': ours.num_workers}, saved,
                   str(source.path))


# ------------------------------------------------------------------------------- the teacher


class Teacher:
    """Masks of an earlier stage as files, `<folder>/<image stem>.png`, made where they are missing:
    `location_<split>` of a locator, else `syn_<split>`. A stage-1 network that a locator taught is
    averaged with it (`location_share`): which of the two is better depends on the data.

    They come from `file`, a checkpoint of stage 0 or 1; without one, from the folders
    `syn_<split>` that published data sets bring along.
    """

    def __init__(self, settings: Settings, file: Path | None, device: torch.device):
        self.settings = settings
        self.device = device
        self.checkpoint = None
        self.prefix = 'syn'
        self.locator = None  # the teacher of this teacher
        if file:
            self.checkpoint = checkpoints.read(file)
            stage = self.checkpoint.settings.get('stage', 1)
            wanted = (0,) if settings.is_located else (0, 1)
            if stage not in wanted:
                raise UserError(f'{file}: of stage {stage}; the teacher has to be a checkpoint of '
                                f'stage {" or ".join(map(str, wanted))}')
            self.prefix = 'syn' if stage else 'location'
            if stage and (path := locator_behind(self.checkpoint)):
                self.locator = Teacher(settings, path, device)
        self._network = None

    @property
    def locating(self) -> checkpoints.Checkpoint | None:
        """The locator: this teacher itself, or the one that taught it."""
        if self.locator:
            return self.locator.checkpoint
        return self.checkpoint if self.prefix == 'location' else None

    def keep_copies(self, folder: Path) -> None:
        """Copies of the networks, so that the folder of a run can be tested on its own."""
        if self.checkpoint:
            checkpoints.write_test_part(self.checkpoint, folder / 'teacher.pt', half=False)
        if self.locator:
            checkpoints.write_test_part(self.locator.checkpoint, folder / 'locator.pt', half=False)

    @property
    def origin(self) -> str:
        """Where the masks come from, for the user."""
        return str(self.checkpoint.path if self.checkpoint
                   else f'{self.settings.data_folder}/syn_*')

    def masks(self, split: str, paths: list[Path]) -> dict[str, Path]:
        """The mask file of each of these pictures of trainA, valA or testA, by the picture's stem."""
        if not self.checkpoint:
            found = dataset.list_pictures(self.settings.data_folder / f'syn_{split}')
            by_stem = {path.stem: path for path in found}
            if missing := [path for path in paths if path.stem not in by_stem]:
                raise UserError(f'{self.settings.data_folder}/syn_{split}: no mask of '
                                f'{missing[0].name}; add it, or remove the folder to have the '
                                'masks made')
            return {path.stem: by_stem[path.stem] for path in paths}
        folder = self.settings.result_folder / f'{self.prefix}_{split}'
        if not self._made_before(folder, paths):
            self._make(split, folder, paths)
        return {path.stem: folder / f'{path.stem}.png' for path in paths}

    def _recipe(self):
        own = settings_of_network(self.checkpoint, self.settings)
        return {'teacher': checkpoints.fingerprint(self.checkpoint),
                'locator': self.locator and [checkpoints.fingerprint(self.locator.checkpoint),
                                             self.settings.location_share],
                'flips': own.flips and 1 + own.no_side_is_up, 'img_size': list(own.size)}

    def _made_before(self, folder, paths):
        try:
            recipe = json.loads((folder / 'made_by.json').read_text())
        except (OSError, ValueError):
            return False
        return (recipe == self._recipe()
                and all((folder / f'{path.stem}.png').is_file() for path in paths))

    def _make(self, split, folder, paths):
        settings = settings_of_network(self.checkpoint, self.settings)
        locations = self.locator and self.locator.masks(split, paths)
        if self._network is None:
            self._network = mask_network(self.checkpoint, settings, self.device)
        part = folder.with_name(f'.{folder.name}.part')
        if parallel.is_first():
            shutil.rmtree(part, ignore_errors=True)  # of a run that was interrupted
            make_folder(part)
        parallel.wait()

        def save(made):
            mask = made.mask
            if locations:
                with Image.open(locations[made.path.stem]) as location:
                    share = self.settings.location_share
                    mask = np.rint(share * np.asarray(location, np.float32)
                                   + (1 - share) * mask).astype(np.uint8)
            Image.fromarray(mask).save(part / f'{made.path.stem}.png', compress_level=1)

        mine = parallel.my_share(paths)
        for _ in tqdm(soft_masks(self._network, mine, settings, self.device, finish=save),
                      f'masks: {folder.name}', len(mine), unit=' images',
                      mininterval=bar_interval()):
            pass
        parallel.wait()
        if parallel.is_first():
            (part / 'made_by.json').write_text(json.dumps(self._recipe()) + '\n')
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        parallel.wait()


def locator_behind(checkpoint: checkpoints.Checkpoint) -> Path | None:
    """The file of a locator: this one, or that of the locator that taught a stage-1 network, from beside
    its file; None where there is none."""
    file = checkpoint.path
    if checkpoint.settings.get('stage') == 0:
        return file
    path = file.with_name('locator.pt' if file.name == 'teacher.pt' else 'teacher.pt')
    return path if checkpoint.settings.get('location_weight') and path.is_file() else None


def choose_teacher(settings: Settings, run_folder: Path | None = None) -> Path | None:
    """The file of the network of the stage before; None where the data set brings its masks along.

    --teacher, else the one that the run used (`teacher.pt` in its folder), else for stage 2 none
    if there are syn_* folders, else what a test of the stage before would take.
    """
    if settings.teacher:
        return Path(settings.teacher)
    if run_folder and (run_folder / 'teacher.pt').is_file():
        return run_folder / 'teacher.pt'
    if settings.is_located:
        return checkpoints.choose_for_test(settings.result_folder, settings.dataset, stage=0)
    if any((settings.data_folder / f'syn_{split}').is_dir() for split in SPLITS):
        return None
    try:
        return checkpoints.choose_for_test(settings.result_folder, settings.dataset, stage=1)
    except UserError as error:
        raise UserError(f'a stage-1 network is needed: {error}'
                        .replace('--checkpoint', '--teacher')) from None
