"""Before a run: whether memory, disk, permissions and units are what it needs, its plan in words.
`counts` are the numbers of parameters of each network that is trained, by name."""
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from config import STUDENT_NETWORKS, Config
from runtime.files import TEXT
from runtime.runs import METHOD_TEXTS, checkpoints_of, iterations_left
from runtime.time_left import duration_text
from utils import UserError, has_bfloat16, pick_device

# Bytes that training needs at its peak, as fitted to peaks measured on a CPU (docs/performance.md):
# PROGRAM_BYTES + 16 a parameter (weight, gradient, two moments) + 4·FEATURE_MAPS·ch a pixel of each
# disease image in a batch; of a student with a pretrained encoder 4·PRETRAINED_CHANNELS
PROGRAM_BYTES = 0.7e9
FEATURE_MAPS = {'first': 115, 'second': 128, 'localizer': 18,
                'unet student': 60}  # maps of ch channels in float32
PRETRAINED_CHANNELS = 1200  # of EfficientNet-Lite0 and its decoder
# bytes that one image takes without gradients, as measured: 4·MASK_MAPS·ch a pixel; of a student
# with a pretrained encoder 4·MASK_CHANNELS
MASK_MAPS = {'first': 6, 'second': 4, 'localizer': 3, 'unet student': 13}
MASK_CHANNELS = 70
REFUSED_FROM = 2  # times the available memory; the estimate is not exact


def memory_needed(config: Config, counts: dict[str, int]) -> float:
    """About how many bytes training takes at its peak."""
    pixels = math.prod(config.size) * config.batch_size
    channels = channels_at_once(config, FEATURE_MAPS, PRETRAINED_CHANNELS)
    return PROGRAM_BYTES + 16 * sum(counts.values()) + 4 * channels * pixels


def channels_at_once(config: Config, maps: dict[str, int], pretrained: int) -> int:
    """Channels in memory at the peak: `maps` of ch by kind of network, or of a pretrained one."""
    if config.method == 'student' and config.encoder != 'none':
        return pretrained
    return config.ch * maps[{'localizer': 'localizer', 'student': 'unet student'}.get(
        config.method, config.generation)]


def check_mask_memory(config: Config, file: Path) -> None:
    """Raises UserError where the network of a checkpoint cannot see even one image of its size."""
    height, width = config.size
    needed = 4 * channels_at_once(config, MASK_MAPS, MASK_CHANNELS) * height * width
    available = available_memory(pick_device(config.device))
    if needed > available:
        raise UserError(f'{file}: its network needs about {size_text(needed)} of memory for one '
                        f'image of {width}×{height} px, and there are {size_text(available)}; give '
                        'a smaller --img_size')


def with_usable_amp(config: Config, device: torch.device) -> Config:
    """The Config without --amp where the device has no units for it, which is then said."""
    return replace(config, amp=config.amp and has_bfloat16(device.type))


def available_memory(device: torch.device) -> float:
    """Bytes of memory of the device that trains; in a container its limit."""
    if device.type == 'cuda':
        return torch.cuda.get_device_properties(device).total_memory
    has_sysconf = hasattr(os, 'sysconf')
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') if has_sysconf else 0
    try:
        return min(memory, int(Path('/sys/fs/cgroup/memory.max').read_text(**TEXT)))
    except (OSError, ValueError):
        return memory or float('inf')


def check_memory(config: Config, counts: dict[str, int]) -> tuple[float, float]:
    """(needed, available) bytes; raises UserError where the run cannot fit."""
    needed = memory_needed(config, counts)
    available = available_memory(pick_device(config.device))
    if needed > REFUSED_FROM * available:
        raise UserError(f'--ch {config.ch} --img_size {config.img_size} --batch_size '
                        f'{config.batch_size}: training needs about {size_text(needed)} of memory, '
                        f'and there are {size_text(available)}; lower one of them')
    return needed, available


def disk_needed(config: Config, counts: dict[str, int]) -> float:
    """Bytes of --keep_checkpoints, best.pt and one being written. A parameter takes 12 (weight,
    two moments), in the copies of a student, which no optimizer changes, 4."""
    return (config.keep_checkpoints + 2) * sum(
        count * (4 if name in STUDENT_NETWORKS[1:] else 12) for name, count in counts.items())


def check_disk(config: Config, counts: dict[str, int]) -> tuple[float, float]:
    """(needed, free) bytes; raises UserError where the checkpoints cannot be written or not fit."""
    folder = config.run_folder.absolute()
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        reason = 'permission denied' if parent.is_dir() else 'not a folder'
        raise UserError(f'cannot write to {parent}: {reason}; give another folder with '
                        '--result_dir')
    needed, free = disk_needed(config, counts), shutil.disk_usage(parent).free
    if needed > free:
        raise UserError(f'{parent}: the checkpoints need {size_text(needed)}, and '
                        f'{size_text(free)} are free; make room, lower --keep_checkpoints, or give '
                        'another folder with --result_dir')
    return needed, free


def dry_run(config: Config, counts: dict[str, int], images: dict[str, list[Path]],
            val_cases: list, seconds_of: Callable[[int], float | None]) -> float | None:
    """Print what training would do and need; nothing is written. `images` are the training images
    of domains A and B, `val_cases` the labeled ones of val; `seconds_of` tells how long so many
    iterations take, as is returned. Raises UserError if it cannot run."""
    disk, free = check_disk(config, counts)
    needed, available = check_memory(config, counts)
    folder = config.run_folder
    resumes = config.resume and checkpoints_of(config)
    seconds = seconds_of(iterations_left(config))
    replaces = not config.resume and folder.is_dir() and any(folder.iterdir())
    time = ('not tried, since memory may be short' if seconds is None else
            f'{duration_text(seconds)}, without scoring on val')
    height, width = config.size
    batch = ' + '.join(str(count) for count in config.batch_counts.values())
    print(f'stage {config.stage}: {METHOD_TEXTS[config.method]} ({config.recipe} recipe), '
          f'{"resumes" if resumes else "starts anew"}\n'
          f'  data      {config.data_folder}: {len(images["A"])} disease and {len(images["B"])} '
          f'normal images to train, {len(val_cases)} labeled images in val\n'
          f'  network   {sum(counts.values()):,} parameters ({", ".join(counts)}), ch {config.ch}, '
          f'images of {width}×{height}\n'
          f'  training  {config.iteration} iterations of {batch} images, lr {config.lr:g}, '
          f'seed {config.seed}{", a tenth of the usual length (--quick)" * config.quick}\n'
          f'  time      {time}\n'
          f'  memory    about {size_text(needed)} of {size_text(available)} '
          f'({pick_device(config.device)})\n'
          f'  disk      {size_text(disk)} for checkpoints every {config.save_freq} iterations; '
          f'{size_text(free)} free\n'
          f'  writes    {folder}' + replaces * (
              f'; the earlier run there would be moved to {config.result_folder}/earlier_…'))
    return seconds


def device_text(device: torch.device) -> str:
    """A device and what it computes with, to print."""
    if device.type == 'cuda':
        return f'{device} ({torch.cuda.get_device_name(device)})'
    threads = torch.get_num_threads()
    return f'{device}, {threads} thread{"s" * (threads > 1)}'


def size_text(count: float) -> str:
    """A number of bytes in MB or GB."""
    return f'{count / 1e9:.1f} GB' if count >= 1e9 else f'{count / 1e6:.0f} MB'
