"""What the README says works: its Python examples run, its command lines are understood."""
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import main
import settings
from conftest import PROJECT, STAGE_1, TINY_FLAGS, Places, draw

README = (PROJECT / 'README.md').read_text(encoding='utf-8')


def example(word):
    return next(code for code in re.findall(r'```python\n(.*?)```', README, re.S) if word in code)


def run(code, folder):
    done = subprocess.run([sys.executable, '-c', code], cwd=folder, capture_output=True, text=True,
                          env={'PYTHONPATH': str(PROJECT), 'OMP_NUM_THREADS': '2'})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def places(data_root, tmp_path):
    places = Places(data_root, tmp_path)
    places.done(*TINY_FLAGS, *STAGE_1, '--iteration', 1, '--batch_size', 1)
    draw(tmp_path, ['picture.png'], size=(60, 40), bright_square=True)
    return places


def test_from_python(places, tmp_path):
    target = tmp_path / 'results' / 'ISIC' / 'model2' / 'best.pt'
    target.parent.mkdir(parents=True)
    target.write_bytes((places.results / 'model1' / 'best.pt').read_bytes())
    said = run(example('Segmenter') + 'print(mask.shape, mask.dtype, soft.shape, soft.dtype)', tmp_path)
    assert said.split('\n')[0] == '(40, 60) bool (40, 60) float32'


def test_onnx(places, tmp_path):
    pytest.importorskip('onnxruntime')
    exported = places.run('--phase', 'export', '--output', tmp_path / 'network.onnx')
    if 'torch 2.6 or newer' in exported.stderr:
        pytest.skip(exported.stderr)
    assert exported.returncode == 0, exported.stderr
    run(example('onnxruntime'), tmp_path)
    mask = np.asarray(Image.open(tmp_path / 'mask.png'))
    assert mask.shape == (40, 60) and set(np.unique(mask)) <= {0, 255}
    assert len(example('onnxruntime').strip().splitlines()) <= 12


def command_lines():
    lines = re.findall(r'main\.py( --[^\n`&…]*)', README)
    return sorted({line.split('#')[0].strip() for line in lines if '--help' not in line})


@pytest.mark.parametrize('line', command_lines())
def test_command_lines(line):
    flags = vars(main.build_parser().parse_args(shlex.split(line.replace('<name>', 'some'))))
    settings.resolve(flags)


def test_every_flag_is_in_the_table():
    table = README[README.index('## Flags'):README.index('## Speed')]
    flags = {name for group in main.FLAGS.values() for name, *_ in group}
    assert flags == set(re.findall(r'`--(\w+)`', table))


def test_every_module_is_in_the_table():
    table = README[README.index('## Where things are'):README.index('## Tests')]
    modules = {path.name for path in PROJECT.glob('*.py')}
    assert modules - {'utils.py'} <= set(re.findall(r'`(\w+\.py)`', table))
