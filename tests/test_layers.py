"""The architecture: imports run down the levels, and modules and rooms import in no circle."""
import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent

# Level of each room (a folder) and module; a module may import of its own level and of lower ones.
LEVELS = {
    'utils': 0,
    'config': 1, 'runtime': 1,
    'dataset': 2, 'networks': 2,
    'reporting': 3, 'checkpoint': 3,
    'inference': 4,
    'stages': 5,
    'trainer': 6, 'predict': 6, 'preparation': 6,
    'workflow': 7,
    'main': 8,
}


def room_of(module):
    """The folder of a module, or the module itself where it lies in none."""
    return module.partition('.')[0]


def project_files(root):
    """Python files of the program by module name (`inference`, `inference.metrics`, …)."""
    files = {}
    for path in [*root.glob('*.py'), *root.glob('*/*.py')]:
        parts = path.relative_to(root).with_suffix('').parts
        if path.parent == root or parts[0] not in ('tests', 'benchmarks'):
            files['.'.join(part for part in parts if part != '__init__')] = path
    return files


def imports(files):
    """(module, line, imported module) of every import between modules of the program, also of
    those inside functions."""
    for module, path in files.items():
        package = module if path.name == '__init__.py' else module.rpartition('.')[0]
        for node in ast.walk(ast.parse(path.read_text('utf8'), str(path))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ''
                if node.level:
                    above = package.split('.')[:len(package.split('.')) - node.level + 1]
                    base = '.'.join([*above, *filter(None, [base])])
                names = [f'{base}.{alias.name}' for alias in node.names]
            else:
                continue
            for name in names:
                while name and name not in files:  # a name inside a module
                    name = name.rpartition('.')[0]
                if name and name != module:
                    yield module, node.lineno, name


def find_circle(imported):
    """A circle in {name: names it imports} as a list of names, or []."""
    done = set()

    def search(name, path):
        if name in path:
            return [*path[path.index(name):], name]
        if name in done:
            return []
        for other in sorted(imported.get(name, ())):
            if circle := search(other, [*path, name]):
                return circle
        done.add(name)
        return []

    return next((circle for name in sorted(imported) if (circle := search(name, []))), [])


def offences(root):
    """A line for each import, or circle of imports, that the architecture forbids."""
    files = project_files(root)
    lines = [f'{path.relative_to(root)}: {room_of(module)} has no level in LEVELS'
             for module, path in files.items() if room_of(module) not in LEVELS]
    of_modules, of_rooms, places = {}, {}, {}
    for module, line, other in imports(files):
        rooms = room_of(module), room_of(other)
        place = f'{files[module].relative_to(root)}:{line}: imports {other}'
        if LEVELS.get(rooms[0], 99) < LEVELS.get(rooms[1], 0):
            lines.append(f'{place}, of level {LEVELS[rooms[1]]}, from level {LEVELS[rooms[0]]}')
        of_modules.setdefault(module, set()).add(other)
        places.setdefault((module, other), place)
        if rooms[0] != rooms[1]:
            of_rooms.setdefault(rooms[0], set()).add(rooms[1])
            places.setdefault(('room', *rooms), place)
    for kind, imported in (((), of_modules), (('room',), of_rooms)):
        circle = find_circle(imported)
        if circle:
            pairs = zip(circle, circle[1:], strict=False)
            lines.append('a circle: ' + '; '.join(places[(*kind, *pair)] for pair in pairs))
    return list(dict.fromkeys(lines))  # a circle of rooms may be one of modules too


def test_imports_run_down_the_levels_and_in_no_circle():
    assert not offences(PROJECT), '\n' + '\n'.join(offences(PROJECT))


def test_reporting_takes_metrics_as_data():
    assert not [place for place in imports(project_files(PROJECT))
                if room_of(place[0]) == 'reporting' and room_of(place[2]) == 'inference']


@pytest.mark.parametrize('files, expected', [
    ({'utils.py': '\nimport config', 'config.py': ''},
     'utils.py:2: imports config, of level 1, from level 0'),
    ({'reporting/report.py': 'def f():\n    from inference import metrics',
      'inference/metrics.py': ''},
     'reporting/report.py:2: imports inference.metrics, of level 4, from level 3'),
    ({'stages/__init__.py': '', 'stages/losses.py': 'from . import optim',
      'stages/optim.py': 'import os\nfrom stages.losses import dice'},
     'a circle: stages/losses.py:1: imports stages.optim; '
     'stages/optim.py:2: imports stages.losses'),
    ({'dataset.py': 'from networks import a', 'networks.py': 'import torch, dataset'},
     'a circle: dataset.py:1: imports networks; networks.py:1: imports dataset'),
    ({'reporting/a.py': 'import checkpoint', 'reporting/b.py': '',
      'checkpoint.py': 'from reporting import b'},
     'a circle: checkpoint.py:1: imports reporting.b; reporting/a.py:1: imports checkpoint'),
    ({'helpers/x.py': ''}, 'helpers/x.py: helpers has no level in LEVELS'),
], ids=['up', 'up inside a function', 'modules', 'top modules', 'rooms', 'unknown'])
def test_an_offence_is_named_with_file_and_line(files, expected, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert offences(tmp_path) == [expected]
