"""The options in words, for --help and docs/options.md.

    python -m reporting.options > docs/options.md
"""
from typing import Any

from config import GROUPS, OPTIONS, preset


def default_text(name: str) -> str:
    """The default of an option, with the situations in which presets change it."""
    one = OPTIONS[name]
    if one.metadata['own_choice']:
        return one.metadata['own_choice']
    if name == 'data_root':
        return 'dataset/ of the project'

    def value(**situation: Any) -> Any:
        return preset(**situation).get(name, one.default)

    usual = value()
    situations = {'published': {'recipe': 'published'},
                  'second generation': {'generation': 'second'},
                  'stage 0': {'stage': 0}, 'stage 2': {'stage': 2}}
    for place in ({'profile': 'dermoscopy'}, {'dataset': 'phantom'}):
        for words, more in (('', {}), (', stage 0', {'stage': 0}), (', stage 2', {'stage': 2})):
            if value(**place, **more) not in (value(**more), value(**place) if more else None):
                situations[next(iter(place.values())) + words] = place | more
    second = {'generation': 'second', 'profile': 'dermoscopy'}
    if value(**second) not in (value(generation='second'), value(profile='dermoscopy')):
        situations['second generation dermoscopy'] = second
    if name == 'batch_size':
        situations['outside training'] = {'phase': 'test'}
    texts = [f'{words} {value(**situation)}' for words, situation in situations.items()
             if value(**situation) != usual]
    return '; '.join(['none' if usual in ('', ()) else str(usual), *texts])


def values_text(name: str) -> str:
    """What values an option takes."""
    rules, kind = OPTIONS[name].metadata, OPTIONS[name].type
    if rules['choices']:
        return ', '.join(str(choice) for choice in rules['choices'] if choice != '')
    words = {bool: 'True, False', int: 'integer', float: 'number', str: 'text', tuple: 'list'}
    bounds = [f'{text} {rules[rule]:g}' for rule, text in
              (('at_least', 'at least'), ('above', 'above'), ('at_most', 'at most'))
              if abs(rules[rule]) < 2 ** 62]  # others only keep files from asking for the absurd
    return ', '.join([words.get(kind, 'integer'), *bounds, *filter(None, [rules['unit']])])


def options_table() -> str:
    """All options as Markdown: docs/options.md."""
    lines = ['# Options', '',
             'Made from `config.py`, where every option is declared once, by',
             '`python -m reporting.options > docs/options.md`. A flag is `--name value`; a bare',
             'boolean flag means True. Defaults are those of `--recipe ours`, stage 1, unless said',
             'otherwise. `python main.py --phase PHASE --help` lists the options of one phase.']
    for group in GROUPS:
        lines += ['', f'## {group[0].upper()}{group[1:]}', '',
                  '| option | values | default | meaning |', '|---|---|---|---|']
        lines += [f'| `--{name}` | {values_text(name)} | {default_text(name)} | '
                  f'{one.metadata["help"]} |'.replace('*', '\\*')
                  for name, one in OPTIONS.items() if one.metadata['group'] == group]
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    print(options_table(), end='')
