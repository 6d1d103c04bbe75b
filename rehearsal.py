"""Before a run: whether data, networks, memory, disk and permissions are as it needs them."""
import os
import shutil
from pathlib import Path

import torch

from networks import build_networks
from settings import STUDENT_NETWORKS, Settings
from utils import UserError, pick_device

# Bytes a training step keeps, as fitted to peaks measured on a CPU (benchmarks/README.md, Memory):
# program + 16 a parameter (weight, gradient, two moments) + 4·K·ch a pixel of each picture of A
PROGRAM = 0.7e9
MAPS = {'first': 115, 'second': 128, 'locator': 18, 'unet student': 60,
        'locator student': 20}  # K, maps of ch channels
REFUSE_ABOVE = 2  # times the memory there is; the estimate is not exact


def parameters(settings: Settings) -> dict[str, int]:
    """Numbers in each network, counted without making them."""
    with torch.device('meta'):
        networks = build_networks(settings, wrap=lambda layer: layer)  # norms on top take long
    return {name: sum(parameter.numel() for parameter in network.parameters())
            for name, network in networks.items()}


def memory_needed(settings: Settings) -> float:
    """About how many bytes training takes at its peak."""
    kind = {'published': settings.generation, 'locator': 'locator',
            'student': f'{settings.student} student'}[settings.scheme]
    height, width = settings.size
    maps = 4 * MAPS[kind] * settings.ch * height * width * settings.batch_size
    return PROGRAM + 16 * sum(parameters(settings).values()) + maps


def memory_there(device: torch.device) -> float:
    """Bytes of the device that trains; of a container its limit."""
    if device.type == 'cuda':
        return torch.cuda.get_device_properties(device).total_memory
    there = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') if hasattr(os, 'sysconf') else 0
    try:
        return min(there, int(Path('/sys/fs/cgroup/memory.max').read_text()))
    except (OSError, ValueError):
        return there or float('inf')


def check_memory(settings: Settings) -> tuple[float, float]:
    """Bytes needed and there; raises UserError where the run cannot fit."""
    needed, there = memory_needed(settings), memory_there(pick_device(settings.device))
    if needed > REFUSE_ABOVE * there:
        raise UserError(f'--ch {settings.ch} --img_size {settings.img_size} --batch_size '
                        f'{settings.batch_size}: training needs about {in_words(needed)} of memory, '
                        f'and there are {in_words(there)}; lower one of them')
    return needed, there


def disk_needed(settings: Settings) -> float:
    """Bytes of the checkpoints that will lie side by side: --keep of them, the best, and one more
    while it is written. 12 a parameter that learns, 4 of the student's copies."""
    counts = parameters(settings)
    copies = STUDENT_NETWORKS[1:]
    one = sum(count * (4 if name in copies else 12) for name, count in counts.items())
    return one * (settings.keep + 2)


def existing_parent(folder: Path) -> Path:
    """The folder, or the nearest of its parents that is there."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def rehearse(settings: Settings, pictures: dict[str, list], val_cases: list) -> None:
    """Print what training would do and need; raises UserError where it cannot be done. Nothing is
    written."""
    parent = existing_parent(settings.run_folder)
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f'cannot write to {parent}: '
                        f'{"permission denied" if parent.is_dir() else "not a folder"}; give '
                        'another folder with --result_dir')
    needed, there = check_memory(settings)
    disk, free = disk_needed(settings), shutil.disk_usage(parent).free
    if disk > free:
        raise UserError(f'{parent}: the checkpoints need {in_words(disk)}, and {in_words(free)} are '
                        'free; make room, lower --keep, or give another folder with --result_dir')
    counts = parameters(settings)
    height, width = settings.size
    begun = any(settings.run_folder.glob(f'{settings.dataset}_params_*.pt'))
    goes_on = 'resumes' if settings.resume and begun else 'starts anew'
    print(f'stage {settings.stage}, {settings.scheme} ({settings.recipe} recipe), {goes_on}\n'
          f'  data      {settings.data_folder}: {len(pictures["A"])} disease and '
          f'{len(pictures["B"])} normal pictures to train, {len(val_cases)} labelled ones in val\n'
          f'  network   {sum(counts.values()):,} parameters ({", ".join(counts)}), ch {settings.ch}, '
          f'pictures of {width}×{height}\n'
          f'  training  {settings.iteration} iterations of {settings.batch_size} + '
          f'{settings.normal_batch if settings.scheme == "student" else settings.batch_size} '
          f'pictures, lr {settings.lr:g}, seed {settings.seed}\n'
          f'  memory    about {in_words(needed)} of {in_words(there)} '
          f'({pick_device(settings.device)})\n'
          f'  disk      {in_words(disk)} for checkpoints every {settings.save_freq} iterations; '
          f'{in_words(free)} free\n'
          f'  writes    {settings.run_folder}' + (
              f'; the earlier run there would be moved to {settings.result_folder}/earlier_…'
              if not settings.resume and settings.run_folder.is_dir()
              and any(settings.run_folder.iterdir()) else ''))


def in_words(count: float) -> str:
    """Bytes for people."""
    return f'{count / 1e9:.1f} GB' if count >= 1e9 else f'{count / 1e6:.0f} MB'
