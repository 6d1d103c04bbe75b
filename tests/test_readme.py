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
from helpers import PROJECT, draw_images
from inference.metrics import jaccard
from predict import Predictor
from reporting.options import options_table

TEXTS = {str(path.relative_to(PROJECT)): path.read_text('utf-8')
         for pattern in ('*.md', 'docs/*.md', 'dataset/README.md', 'model/README.md')
         for path in sorted(PROJECT.glob(pattern))}
ARCHITECTURE = TEXTS['docs/architecture.md']
MODULES = [path for folder in ('', 'inference', 'preparation', 'reporting', 'runtime', 'stages')
           for path in (PROJECT / folder).glob('*.py') if path.name != '__init__.py']
# of torchrun, tensorboard, pip and argparse, and a placeholder
FOREIGN_FLAGS = {'nproc_per_node', 'nnodes', 'rdzv_backend', 'rdzv_endpoint', 'signals-to-handle',
                 'logdir', 'help', 'name', 'index-url'}
# pages that also name flags of the scripts in benchmarks/
MEASUREMENTS = ('docs/results.md', 'docs/ablations.md', 'docs/performance.md', 'docs/robustness.md')
BENCHMARK_FLAGS = {flag for path in (PROJECT / 'benchmarks').glob('*.py')
                   for flag in re.findall(r"'--(\w+)'", path.read_text('utf-8'))}
COMMANDS = sorted({line.strip() for text in TEXTS.values()  # what follows main.py
                   for line in re.findall(r'main\.py( --[^\n`&…|#]*)', text)
                   if '--help' not in line})

SHIPPED = 'model/ISIC_params_0000300.pt'  # which the Python example of prediction.md takes


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings."""
    headings = re.findall(r'^#+ (.*)$', re.sub(r'```.*?```', '', text, flags=re.S), re.M)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


def run_example(word: str, folder: Path, more: str = '') -> str:
    """What the Python example of prediction.md that holds a word, and more, prints in a folder."""
    examples = re.findall(r'```python\n(.*?)```', TEXTS['docs/prediction.md'], re.S)
    code = next(code for code in examples if word in code) + more
    code = code.replace(f'/path/to/this/project/{SHIPPED}', 'best.pt')  # a small one, of a test
    code = code.replace('/path/to/this/project', str(PROJECT))
    done = subprocess.run([sys.executable, '-c', code], cwd=folder, capture_output=True, text=True,
                          env={'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_readme_is_short_and_its_test_command_installs_what_it_needs():
    assert len(TEXTS['README.md'].splitlines()) <= 150
    section = TEXTS['README.md'].split('## Tests')[1].split('\n## ')[0]
    line = next(line for line in section.splitlines() if 'pytest' in line)  # as .ci/run reads it
    assert '-r requirements.txt' in line and 'ruff' in line
    assert line.endswith('.venv/bin/python -m pytest -n 2 tests')


def test_options_page_is_current():
    """If this fails: python -m reporting.options > docs/options.md"""
    assert TEXTS['docs/options.md'] == options_table()


def test_commands():
    for line in COMMANDS:
        arguments = shlex.split(line.replace('<name>', 'some'))
        config.resolve(vars(main.build_parser().parse_args(arguments)))
    phases = {line.split('--phase ')[1].split()[0] for line in COMMANDS if '--phase ' in line}
    assert phases >= set(config.PHASES) - {'pseudo_mask'}


@pytest.mark.parametrize('name', TEXTS)
def test_flags_and_links_exist(name):
    known = config.OPTIONS.keys() | FOREIGN_FLAGS
    known |= BENCHMARK_FLAGS if name in MEASUREMENTS else set()
    assert not set(re.findall(r'(?<![\w-])--([a-z][\w-]*)', TEXTS[name])) - known
    for target, anchor in re.findall(r'\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)', TEXTS[name]):
        path = (PROJECT / name).parent / target if target else PROJECT / name
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text('utf-8')), f'{target}#{anchor}'


def test_architecture_names_every_module_and_no_other_file():
    assert not [path.name for path in MODULES if f'{path.name}`' not in ARCHITECTURE]
    names = re.findall(r'`((?:\w+/)*\w+\.(?:py|html|md)|\w+/)`', ARCHITECTURE)
    assert len(names) > 50
    assert not [name for name in names if not (PROJECT / name).exists()
                and not list(PROJECT.glob(f'[!.]*/{name}'))]


def test_architecture_names_what_is_in_the_files():
    """Of the table "To change": every name in backticks is in one of the files of its row."""
    rows = re.findall(r'^\|(.*\.py.*)\|$', ARCHITECTURE.split('## To change')[1], re.M)
    assert len(rows) > 10
    for row in rows:
        spans = re.findall(r'`([^`]+)`', row)
        files = [span for span in spans if re.search(r'\.(py|html)$', span)]
        code = ''.join((PROJECT / file).read_text('utf-8') for file in files)
        for span in set(spans) - set(files):
            assert span.startswith(('--', 'python ')) or re.search(
                rf'\b{re.escape(span.split("=")[0])}\b', code), f'{span}: {files}'


@pytest.mark.slow
def test_python_examples(stage_1, tmp_path):
    draw_images(tmp_path, ['photo.png'], size=(60, 40), bright_square=True)
    (tmp_path / 'utils.py').write_text('raise ImportError("not the one of the project")')
    shutil.copy(stage_1.results / 'model1' / 'best.pt', tmp_path)
    assert (PROJECT / SHIPPED).is_file() and f'{SHIPPED}\'' in TEXTS['docs/prediction.md']
    output = run_example('Predictor', tmp_path, '''
import sys
import config
import networks
networks.build_networks(config.resolve({'stage': 2}))  # with the default encoder
print({'timm', 'torchvision', 'scipy', 'nibabel', 'onnx', 'matplotlib'} & sys.modules.keys())
print([(array.shape, str(array.dtype)) for array in (segmentations[0], soft_masks[0])])''')
    assert output.splitlines()[-2:] == [  # what takes long to import was not needed
        'set()', "[((40, 60), 'bool'), ((40, 60), 'float32')]"]
    stage_1.done('--phase', 'export', '--output', tmp_path / 'network.onnx', '--postprocess',
                 'threshold')
    assert 'threshold' not in run_example('onnxruntime', tmp_path)
    mask = np.asarray(Image.open(tmp_path / 'mask.png'))
    predictor = Predictor(tmp_path / 'best.pt', 'cpu', postprocess='threshold')
    segmentation, = predictor.predict([np.asarray(Image.open(tmp_path / 'photo.png'))])
    assert set(np.unique(mask)) == {0, 255}
    assert jaccard(mask > 0, segmentation) >= 0.99
