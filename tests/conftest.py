"""Small data sets, and the program as a user runs it."""
import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parent.parent / 'benchmarks'))  # published.py

import main  # noqa: E402
import settings  # noqa: E402

torch.set_num_threads(2)
PROJECT = Path(__file__).resolve().parent.parent

# the smallest networks that still have every part
TINY = {'ch': 4, 'n_res': 1, 'n_dis': 4, 'img_size': 32, 'device': 'cpu', 'num_workers': 0}
TINY_FLAGS = [text for name, value in TINY.items() for text in (f'--{name}', str(value))]
STAGE_1 = ['--stage', '1', '--recipe', 'published']  # label transfer alone, without a locator


def draw(folder: Path, names, size=(40, 36), seed=0, bright_square=False):
    """Noise pictures (width, height); with a bright square they are diseased."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        rng = np.random.default_rng((seed, number))
        pixels = rng.integers(0, 100, (size[1], size[0], 3), dtype=np.uint8)
        if bright_square:
            pixels[10:20, 12:24] = 220
        Image.fromarray(pixels).save(folder / name)


def draw_labels(folder: Path, stems, size=(40, 36)):
    folder.mkdir(parents=True, exist_ok=True)
    label = np.zeros((size[1], size[0]), np.uint8)
    label[10:20, 12:24] = 255
    for stem in stems:
        Image.fromarray(label).save(folder / f'{stem}_segmentation.png')


@pytest.fixture
def data_root(tmp_path):
    """A data root that holds the set `Tiny`, first layout, A and B of different lengths."""
    root = tmp_path / 'data'
    tiny = root / 'Tiny'
    draw(tiny / 'trainA', [f'a{i}.png' for i in range(5)], bright_square=True)
    draw(tiny / 'trainB', [f'b{i}.png' for i in range(3)], seed=1)
    draw(tiny / 'testA', [f't{i}.png' for i in range(3)], seed=2, bright_square=True)
    draw(tiny / 'testB', ['n0.png'], seed=3)
    draw_labels(tiny / 'test' / 'labels', ['t0', 't1'])
    draw(tiny / 'val' / 'images', ['v0.png', 'v1.png'], seed=4, bright_square=True)
    draw_labels(tiny / 'val' / 'labels', ['v0', 'v1'])
    return root


@pytest.fixture
def tiny_settings(data_root, tmp_path):
    """A function that gives settings for the tiny set, with any changed."""
    def make(**changed):
        return settings.resolve({**TINY, 'dataset': 'Tiny', 'data_root': str(data_root),
                                 'result_dir': str(tmp_path / 'results'), 'iteration': 2,
                                 'batch_size': 1, **changed})
    return make


def command(*arguments, cwd=PROJECT):
    """Run `python main.py …` and return what came of it."""
    return subprocess.run([sys.executable, str(PROJECT / 'main.py'), *map(str, arguments)],
                          cwd=cwd, capture_output=True, text=True, timeout=300)


class Places:
    """A data set and a result folder, and the program run on them."""

    def __init__(self, data_root, tmp_path):
        self.data = data_root / 'Tiny'
        self.results = tmp_path / 'results' / 'Tiny'
        self.flags = ['--dataset', 'Tiny', '--data_root', data_root, '--result_dir',
                      tmp_path / 'results', '--device', 'cpu', '--num_workers', 0]

    def run(self, *arguments):
        """As `command`, but in this process, which saves the seconds that torch takes to start."""
        line = ['main.py', *(str(text) for text in (*self.flags, *arguments))]
        out, err = io.StringIO(), io.StringIO()
        with mock.patch('sys.argv', line), redirect_stdout(out), redirect_stderr(err):
            code = main.main()
        return subprocess.CompletedProcess(line, code, out.getvalue(), err.getvalue())

    def done(self, *arguments):
        result = self.run(*arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout


def same(one, other):
    """Two checkpoints' contents are equal to the bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def assert_one_line_error(result, *parts):
    """Exit code 2 and one line on stderr that holds all parts (progress bars left aside)."""
    lines = [line for line in result.stderr.replace('\r', '\n').splitlines()
             if line.strip() and '%|' not in line]
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1 and lines[0].startswith('error: '), result.stderr
    for part in parts:
        assert str(part) in lines[0], lines[0]


def disc(size, centre, radius):
    """A bool array of `size` that is true within `radius` of `centre`."""
    rows, columns = np.mgrid[:size[0], :size[1]]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius ** 2


def jaccard(one, other):
    """Of two boolean masks, 0 to 1."""
    return (one & other).sum() / (one | other).sum()
