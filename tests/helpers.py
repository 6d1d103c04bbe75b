"""Small data sets, and the program as a user runs it."""
import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

import main

torch.set_num_threads(1)
PROJECT = Path(__file__).resolve().parent.parent

# the smallest networks that still have every part
TINY = {'ch': 4, 'n_res': 1, 'n_dis': 4, 'img_size': 32, 'encoder': 'none', 'device': 'cpu',
        'num_workers': 0}
TINY_FLAGS = [text for name, value in TINY.items() for text in (f'--{name}', str(value))]
ONLY_MASKS = ['--save_visuals', 'False']
STAGE_1 = ['--stage', '1', '--recipe', 'published']  # label transfer alone, without a localizer


def draw_images(folder: Path, names: Iterable[str], size: tuple[int, int] = (40, 36),
                seed: int = 0, bright_square: bool = False) -> None:
    """Noise images (width, height); with a bright square they are diseased."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        rng = np.random.default_rng((seed, number))
        pixels = rng.integers(0, 100, (size[1], size[0], 3), dtype=np.uint8)
        if bright_square:
            pixels[10:20, 12:24] = 220
        Image.fromarray(pixels).save(folder / name)


def draw_labels(folder: Path, stems: Iterable[str], size: tuple[int, int] = (40, 36)) -> None:
    """Labels (width, height) of that bright square."""
    folder.mkdir(parents=True, exist_ok=True)
    label = np.zeros((size[1], size[0]), np.uint8)
    label[10:20, 12:24] = 255
    for stem in stems:
        Image.fromarray(label).save(folder / f'{stem}_segmentation.png')


def draw_data_set(root: Path) -> Path:
    """A data root that holds the set `Tiny`: A and B of different lengths, two of three test
    images labeled, two labeled val images. Returns `root`."""
    tiny = root / 'Tiny'
    draw_images(tiny / 'trainA', [f'a{i}.png' for i in range(5)], bright_square=True)
    draw_images(tiny / 'trainB', [f'b{i}.png' for i in range(3)], seed=1)
    draw_images(tiny / 'testA', [f't{i}.png' for i in range(3)], seed=2, bright_square=True)
    draw_images(tiny / 'testB', ['n0.png'], seed=3)
    draw_labels(tiny / 'test' / 'labels', ['t0', 't1'])
    draw_images(tiny / 'val' / 'images', ['v0.png', 'v1.png'], seed=4, bright_square=True)
    draw_labels(tiny / 'val' / 'labels', ['v0', 'v1'])
    return root


def command(*arguments: Any, cwd: Path = PROJECT) -> subprocess.CompletedProcess:
    """Run `python main.py …` as a process of its own."""
    return subprocess.run([sys.executable, str(PROJECT / 'main.py'), *map(str, arguments)],
                          cwd=cwd, capture_output=True, text=True, timeout=300)


def run_here(*arguments: Any) -> subprocess.CompletedProcess:
    """As `command`, but in this process and without what takes longer than tiny runs do: starting
    torch, curves.png, and starting processes for post-processing (here threads)."""
    line = ['main.py', *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    without_curves = SimpleNamespace(draw=lambda folder: 0)
    with (mock.patch('sys.argv', line), redirect_stdout(out), redirect_stderr(err),
          mock.patch('reporting.training_log.curves', without_curves),
          mock.patch('inference.model_selection.worker_pool', ThreadPoolExecutor),
          mock.patch('inference.evaluation.worker_pool', ThreadPoolExecutor)):
        try:
            code = main.main()
        except SystemExit as ended:  # --help
            code = ended.code or 0
    return subprocess.CompletedProcess(line, code, out.getvalue(), err.getvalue())


class Places:
    """The data set `Tiny` and a result folder, and the program run on them."""

    def __init__(self, data_root: Path, folder: Path) -> None:
        """`folder` is where the result folder lies."""
        self.data = data_root / 'Tiny'
        self.results = folder / 'results' / 'Tiny'
        self.flags = ['--dataset', 'Tiny', '--data_root', data_root, '--result_dir',
                      folder / 'results', '--device', 'cpu', '--num_workers', 0]
        self.printed = ''  # by the newest run

    def run(self, *arguments: Any) -> subprocess.CompletedProcess:
        result = run_here(*self.flags, *arguments)
        self.printed = result.stdout
        return result

    def done(self, *arguments: Any) -> str:
        """What a run that has to succeed prints."""
        result = self.run(*arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def copy(self, folder: Path) -> 'Places':
        """The data and the results once more below `folder`, to be changed at will."""
        shutil.copytree(self.data, folder / 'data' / 'Tiny')
        if self.results.exists():
            shutil.copytree(self.results, folder / 'results' / 'Tiny')
        return Places(folder / 'data', folder)


def training_batch(count: int = 2) -> dict[str, torch.Tensor]:
    """Noise images of both domains, and soft masks of one rectangle, all in [-1, 1]."""
    rng = torch.Generator().manual_seed(0)
    mask = torch.full((count, 1, 32, 32), -1.0)
    mask[:, :, 8:20, 10:24] = 0.8
    return {'mask': mask, **{domain: torch.rand(count, 3, 32, 32, generator=rng) * 2 - 1
                             for domain in 'AB'}}


def squares(count: int, size: int = 32, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise images with a bright square, and the square's mask: count×3×H×W, count×1×H×W."""
    rng = np.random.default_rng(seed)
    image = torch.from_numpy(rng.uniform(-1, -0.4, (count, 3, size, size)).astype(np.float32))
    mask = torch.zeros(count, 1, size, size)
    for index in range(count):
        top, left = rng.integers(4, size - 14, 2)
        mask[index, :, top:top + 10, left:left + 10] = 1
    return torch.where(mask > 0, 0.8, image), mask


def names(folder: Path) -> list[str]:
    """Sorted names of what is in a folder."""
    return sorted(path.name for path in folder.iterdir())


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text('utf-8'))


def read_pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def same(one: Any, other: Any) -> bool:
    """Whether two checkpoints' contents are equal to the bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def assert_one_line_error(result: subprocess.CompletedProcess, *parts: Any) -> None:
    """Exit code 2 and one line on stderr that holds all parts (progress bars left aside)."""
    lines = [line for line in result.stderr.replace('\r', '\n').splitlines()
             if line.strip() and '%|' not in line]
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1 and lines[0].startswith('error: '), result.stderr
    for part in parts:
        assert str(part) in lines[0], lines[0]


def disc(size: tuple[int, int], center: tuple[float, float], radius: float) -> np.ndarray:
    """A bool array of `size` that is true within `radius` of `center`."""
    rows, columns = np.mgrid[:size[0], :size[1]]
    return (rows - center[0]) ** 2 + (columns - center[1]) ** 2 <= radius ** 2
