"""The architecture: imports run down the levels, and modules and rooms import in no circle."""
import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from helpers import PROJECT

# Level of each room (a folder) and module; a module may import of its own level and of lower ones.
LEVELS = {name: level for level, names in enumerate((
    'utils', 'presets', 'config runtime', 'dataset image_files networks efficientnet shortcuts',
    'reporting checkpoint', 'inference', 'stages', 'trainer predict evaluate preparation',
    'workflow', 'main'))
    for name in names.split()}


def room_of(module: str) -> str:
    """The folder of a module, or the module itself where it lies in none."""
    return module.partition('.')[0]


def project_files(root: Path) -> dict[str, Path]:
    """Python files of the program by module name (`inference`, `inference.metrics`, …)."""
    return {'.'.join(path.relative_to(root).with_suffix('').parts).removesuffix('.__init__'): path
            for path in [*root.glob('*.py'), *root.glob('*/*.py')]
            if path.parent.name not in ('tests', 'benchmarks')}


def imports(files: dict[str, Path]) -> Iterator[tuple[str, int, str]]:
    """(module, line, imported module) of every import between modules of the program, also of
    those inside functions."""
    for module, path in files.items():
        for node in ast.walk(ast.parse(path.read_text('utf8'), str(path))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                package = [room_of(module) if node.level else '', node.module]
                names = ['.'.join(filter(None, [*package, alias.name])) for alias in node.names]
            for name in names:
                while name and name not in files:  # a name inside a module
                    name = name.rpartition('.')[0]
                if name and name != module:
                    yield module, node.lineno, name


def offences(root: Path) -> list[str]:
    """A line for each import, or circle of imports, that the architecture forbids."""
    files = project_files(root)
    lines = [f'{path.relative_to(root)}: {room_of(module)} has no level in LEVELS'
             for module, path in files.items() if room_of(module) not in LEVELS]
    of_modules, of_rooms = {}, {}
    for module, line, other in imports(files):
        level, other_level = (LEVELS.get(room_of(name), 0) for name in (module, other))
        if level < other_level:
            lines.append(f'{files[module].relative_to(root)}:{line}: imports {other}, of level '
                         f'{other_level}, from level {level}')
        of_modules.setdefault(module, set()).add(other)
        if room_of(module) != room_of(other):
            of_rooms.setdefault(room_of(module), set()).add(room_of(other))
    for imported in (of_modules, of_rooms):
        try:
            TopologicalSorter(imported).prepare()
        except CycleError as error:
            lines.append('a circle: ' + ', '.join(sorted(set(error.args[1]))))
    return list(dict.fromkeys(lines))  # a circle of rooms may be one of modules too


def test_imports_run_down_the_levels_and_in_no_circle():
    assert not offences(PROJECT), '\n' + '\n'.join(offences(PROJECT))


@pytest.mark.parametrize('files, expected', [
    ({'reporting/report.py': 'def f():\n    from inference import metrics',
      'inference/metrics.py': ''},
     'reporting/report.py:2: imports inference.metrics, of level 5, from level 4'),
    ({'stages/__init__.py': '', 'stages/losses.py': 'from . import optim',
      'stages/optim.py': 'import os\nfrom stages.losses import dice'},
     'a circle: stages.losses, stages.optim'),
    ({'reporting/a.py': 'import checkpoint', 'reporting/b.py': '',
      'checkpoint.py': 'from reporting import b'}, 'a circle: checkpoint, reporting'),
    ({'helpers/x.py': ''}, 'helpers/x.py: helpers has no level in LEVELS'),
], ids=['up', 'modules', 'rooms', 'unknown'])
def test_an_offence_is_named(files, expected, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert offences(tmp_path) == [expected]
