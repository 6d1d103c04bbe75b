"""What README and docs say works: commands, options, links and examples."""
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import config
import main
from helpers import PROJECT, STAGE_1, TINY_FLAGS, Places, draw_images
from reporting.options import options_table

DOCUMENTS = sorted([*PROJECT.glob('*.md'), *(PROJECT / 'docs').glob('*.md'),
                    PROJECT / 'dataset' / 'README.md', PROJECT / 'model' / 'README.md'])
TEXTS = {str(path.relative_to(PROJECT)): path.read_text(encoding='utf-8') for path in DOCUMENTS}
OUR_FOLDERS = ('benchmarks', 'inference', 'preparation', 'reporting', 'runtime', 'stages')
# of torchrun, tensorboard and argparse, and a placeholder
FOREIGN_FLAGS = {'nproc_per_node', 'nnodes', 'rdzv_backend', 'rdzv_endpoint', 'signals-to-handle',
                 'logdir', 'help', 'name'}
# pages that also name flags of the scripts in benchmarks/
MEASUREMENTS = ('docs/results.md', 'docs/ablations.md', 'docs/performance.md', 'docs/robustness.md')
BENCHMARK_FLAGS = {flag for path in (PROJECT / 'benchmarks').glob('*.py')
                   for flag in re.findall(r"'--(\w+)'", path.read_text(encoding='utf-8'))}


def commands() -> list[str]:
    """What follows main.py in every command of the documents."""
    lines = [line for text in TEXTS.values()
             for line in re.findall(r'main\.py( --[^\n`&…|#]*)', text)]
    return sorted({line.strip() for line in lines if '--help' not in line})


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings."""
    headings = re.findall(r'^#+ (.*)$', re.sub(r'```.*?```', '', text, flags=re.S), re.M)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


def flags_in(text: str) -> set[str]:
    """The flags that a document names."""
    return set(re.findall(r'(?<![\w-])--([a-z][\w-]*)', text)) - FOREIGN_FLAGS


def example(document: str, word: str) -> str:
    """The Python example of a document that holds a word."""
    examples = re.findall(r'```python\n(.*?)```', TEXTS[document], re.S)
    return next(code for code in examples if word in code)


def run(code: str, folder: Path) -> str:
    """What a piece of Python prints when it runs in a folder."""
    done = subprocess.run([sys.executable, '-c', code], cwd=folder, capture_output=True, text=True,
                          env={'PYTHONPATH': str(PROJECT), 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_readme_is_short() -> None:
    assert len(TEXTS['README.md'].splitlines()) <= 150


def test_options_page_is_current() -> None:
    """If this fails: python -m reporting.options > docs/options.md"""
    assert TEXTS['docs/options.md'] == options_table()


@pytest.mark.parametrize('line', commands())
def test_commands(line: str) -> None:
    arguments = shlex.split(line.replace('<name>', 'some'))
    config.resolve(vars(main.build_parser().parse_args(arguments)))


def test_there_are_commands_of_every_phase() -> None:
    phases = {line.split('--phase ')[1].split()[0] for line in commands() if '--phase ' in line}
    assert phases >= set(config.PHASES) - {'pseudo_mask'}


@pytest.mark.parametrize('name', TEXTS)
def test_flags_exist(name: str) -> None:
    known = config.OPTIONS.keys() | (BENCHMARK_FLAGS if name in MEASUREMENTS else set())
    assert not flags_in(TEXTS[name]) - known


@pytest.mark.parametrize('name', TEXTS)
def test_links(name: str) -> None:
    for target, _, anchor in re.findall(r'\]\(([^)#\s]*)(#?)([^)\s]*)\)', TEXTS[name]):
        if target.startswith(('http:', 'https:')):
            continue
        path = (PROJECT / name).parent / target if target else PROJECT / name
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text(encoding='utf-8')), f'{target}#{anchor}'


def test_architecture_names_what_exists() -> None:
    """Files and, of the table "To change", names in code."""
    text = TEXTS['docs/architecture.md']
    names = re.findall(r'`((?:\w+/)*\w+\.(?:py|html|md)|\w+/)`', text)
    in_folders = {path.name for folder in OUR_FOLDERS for path in (PROJECT / folder).iterdir()}
    assert len(names) > 50
    for name in names:
        assert (PROJECT / name).exists() or name in in_folders, name


@pytest.mark.parametrize('row', re.findall(r'^\|(.*\.py.*)\|$',
                                           TEXTS['docs/architecture.md'].split('## To change')[1],
                                           re.M))
def test_architecture_names_what_is_in_the_files(row: str) -> None:
    """Every name in backticks is in one of the files of its row."""
    spans = re.findall(r'`([^`]+)`', row)
    files = [span for span in spans if re.search(r'\.(py|html)$', span)]
    code = ''.join((PROJECT / file).read_text(encoding='utf-8') for file in files)
    for span in set(spans) - set(files):
        if not span.startswith(('--', 'python ')):
            assert re.search(rf'\b{re.escape(span.split("=")[0])}\b', code), f'{span}: {files}'


def test_architecture_names_every_module() -> None:
    text = TEXTS['docs/architecture.md']
    modules = [*PROJECT.glob('*.py'), *(path for folder in OUR_FOLDERS if folder != 'benchmarks'
                                        for path in (PROJECT / folder).glob('*.py'))]
    assert not [path.name for path in modules
                if path.name != '__init__.py' and f'{path.name}`' not in text]


@pytest.fixture
def trained(places: Places, tmp_path: Path) -> Places:
    """A stage-1 network after one iteration, and a photo to segment."""
    places.done(*TINY_FLAGS, *STAGE_1, '--iteration', 1, '--batch_size', 1)
    draw_images(tmp_path, ['photo.png'], size=(60, 40), bright_square=True)
    return places


@pytest.mark.slow
def test_python_example(trained: Places, tmp_path: Path) -> None:
    checkpoint = tmp_path / 'results' / 'ISIC' / 'model2' / 'best.pt'
    checkpoint.parent.mkdir(parents=True)
    shutil.copy(trained.results / 'model1' / 'best.pt', checkpoint)
    shapes = '''
print([(array.shape, str(array.dtype)) for array in (segmentations[0], soft_masks[0])])'''
    output = run(example('docs/prediction.md', 'Predictor') + shapes, tmp_path)
    assert output.splitlines()[-1] == "[((40, 60), 'bool'), ((40, 60), 'float32')]"


@pytest.mark.slow
def test_onnx_example(trained: Places, tmp_path: Path) -> None:
    trained.done('--phase', 'export', '--output', tmp_path / 'network.onnx')
    run(example('docs/prediction.md', 'onnxruntime'), tmp_path)
    mask = np.asarray(Image.open(tmp_path / 'mask.png'))
    assert mask.shape == (40, 60) and set(np.unique(mask)) <= {0, 255}


def test_install_and_test_commands() -> None:
    """The test command of the README, which .ci/run reads, installs what it needs."""
    section = TEXTS['README.md'].split('## Tests')[1].split('\n## ')[0]
    line = next(line for line in section.splitlines() if 'pytest' in line)
    assert '-r requirements.txt' in line and 'ruff' in line
    assert line.endswith('.venv/bin/python -m pytest -n 2 tests')
