"""Soft masks, heatmaps and translations of images from a trained network."""
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import checkpoint as checkpoints
import dataset
from config import ARCHITECTURE, MASK_NETWORK, Config, resolve
from efficientnet import EfficientNetLite0
from image_files import open_image, shown_size
from inference.postprocess import clear_background, resize_map, to_bytes
from networks import make_ready
from presets import TEST_BATCH_SIZE
from reporting import visualize
from runtime.threads import cpu_count, prefetch

FLIPS = {'none': (), 'mirror': ((3,),), 'flips': ((3,), (2,), (2, 3))}  # reversed axes, by --tta
CPU_FEATURE_BYTES = 2 ** 24  # ours: larger blocks are requested from the system for each layer

Finished = TypeVar('Finished')


class SoftMask(NamedTuple):
    """The output of a network for one image, in the image's own size."""
    path: Path
    mask: np.ndarray  # H×W uint8, 255 = lesion
    heatmap: np.ndarray | None  # H×W float, any range
    translation: np.ndarray | None  # H×W×3 uint8


class Output(NamedTuple):
    """The output of a network for one image, in the network's size."""
    mask: np.ndarray  # H×W float in [0, 1]
    heatmap: np.ndarray | None  # 1×h×w float, any range; None where the network has none
    translation: np.ndarray | None  # C×H×W float in [-1, 1]


def autocast(config: Config, device: torch.device) -> AbstractContextManager:
    """bfloat16 where that is safe with --amp, else nothing."""
    return torch.autocast(device.type, torch.bfloat16) if config.amp else nullcontext()


def as_conditioning(mask: Tensor, img_ch: int) -> Tensor:
    """A stage-1 soft mask B×1×H×W in [-1, 1] as a conditioning image, B×img_ch×H×W (published)."""
    return mask.expand(-1, img_ch, -1, -1)


def average_over_flips(network: nn.Module, inputs: list[Tensor], mask: Tensor, tta: str) -> Tensor:
    """Test-time augmentation, `tta` one of FLIPS: the mean of `mask` B×1×H×W, which is the
    network's of these inputs of its predict_mask, and of its masks of their flips."""
    if tta == 'none':
        return mask
    masks = [mask.float()]
    for axes in FLIPS[tta]:
        flipped = [part.flip(axes) for part in inputs]
        masks.append(network.predict_mask(*flipped).mask.float().flip(axes))
    return torch.stack(masks).mean(0)


def mask_network(checkpoint: checkpoints.Checkpoint, config: Config, device: torch.device,
                 name: str = '') -> nn.Module:
    """The network of a checkpoint that makes masks (or the one of that name), ready to run."""
    name = name or MASK_NETWORK[config.method]
    network = checkpoints.take_network(checkpoint, config, name).eval()
    for module in network.modules():
        if isinstance(module, EfficientNetLite0):
            module.fold_normalization()
    return make_ready(nn.ModuleDict({name: network}), config, device).eval()[name]


def soft_masks(network: nn.Module, paths: list[Path], config: Config, device: torch.device,
               conditioning: dict[str, Path] | None = None, with_translations: bool = False,
               finish: Callable[[SoftMask], Finished] = lambda soft: soft) -> Iterator[Finished]:
    """finish(SoftMask) of each image, in order. `conditioning` holds the files of the stage-1 soft
    masks by the images' stems, for generators that take them; generators alone have translations.
    Reading, network and finishing overlap: threads read ahead, others resize and call `finish`."""
    def in_own_size(path_and_output: tuple[Path, Output]) -> Finished:
        path, (mask, heatmap, translation) = path_and_output
        with open_image(path) as image:
            size = shown_size(image)
        return finish(SoftMask(
            path, to_bytes(resize_map(mask, size)),
            None if heatmap is None else resize_map(heatmap[0], size),
            None if translation is None else np.asarray(dataset.resize(
                Image.fromarray(visualize.from_array(translation)), size[::-1]))))

    batches = dataset.image_batches(paths, config, images_at_a_time(config, device), conditioning)
    of_paths = (output for batch in batches
                for output in outputs(network, batch, config, device, with_translations))
    return prefetch(in_own_size, zip(paths, of_paths, strict=True), cpu_count())


@torch.inference_mode()
def outputs(network: nn.Module, batch: dict[str, Tensor], config: Config, device: torch.device,
            with_translations: bool = False) -> list[Output]:
    """The network's output for each image of a batch from `dataset.image_batches`."""
    inputs = [batch['image'].to(device)]
    if 'mask' in batch:
        inputs.append(as_conditioning(batch['mask'], config.img_ch).to(device))
    is_generator = config.method in ('label_transfer', 'label_transfer_refine')
    translate = with_translations and is_generator
    with autocast(config, device):
        output = network(*inputs, recon_of=0) if translate else network.predict_mask(*inputs)
        masks = average_over_flips(network, inputs, output.mask, config.tta)
    masks = to_array(masks[:, 0])
    if clears_background(config):
        masks = [clear_background(mask, image.transpose(1, 2, 0))
                 for mask, image in zip(masks, to_array(batch['image']), strict=True)]
    heatmaps, translations = ([None] * len(masks) if part is None else to_array(part)
                              for part in (output.heatmap, output.fake if translate else None))
    return [Output(*parts) for parts in zip(masks, heatmaps, translations, strict=True)]


def clears_background(config: Config) -> bool:
    """Whether masks are 0 on black background, see `clear_background`."""
    return config.generation == 'second' and MASK_NETWORK[config.method] == 'genA2B'


def images_at_a_time(config: Config, device: torch.device) -> int:
    """The batch size; on a CPU first-layer feature maps stay within CPU_FEATURE_BYTES."""
    batch_size = TEST_BATCH_SIZE if config.phase == 'train' else config.batch_size
    if device.type != 'cpu':
        return batch_size
    height, width = config.size
    return max(1, min(batch_size, CPU_FEATURE_BYTES // (4 * config.ch * height * width)))


def to_array(tensor: Tensor) -> np.ndarray:
    """A tensor as a float32 array."""
    return tensor.detach().float().cpu().numpy()


def config_of_network(checkpoint: checkpoints.Checkpoint, config: Config) -> Config:
    """The Config for a network of an earlier stage: its own shapes, the rest as in this run."""
    saved = {name: value for name, value in checkpoint.config.items() if name in ARCHITECTURE}
    stage = checkpoint.config.get('stage', 1)
    flags: dict[str, Any] = {
        'phase': 'pseudo_mask', 'stage': stage,
        'tta': config.tta if stage > 0 else 'none',  # a localizer averages over its views itself
        **{name: getattr(config, name)
           for name in ('dataset', 'data_root', 'amp', 'compile', 'num_workers')}}
    return resolve(flags, saved, str(checkpoint.path))
