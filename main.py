"""Label transfer: lesion masks from disease / normal image labels. The command line.

    python main.py --dataset ISIC --phase train
    python main.py --dataset ISIC --phase test
"""
import argparse
import difflib
import errno
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, NoReturn

import workflow
from config import GROUPS, OPTIONS, PHASES
from reporting.options import default_text
from runtime import signals
from runtime.files import REMEDIES, TEXT, print_any_character
from utils import UserError, printable, similar_word

EXAMPLES = """Lesion masks from disease / normal image labels.

  python main.py --dataset ISIC --phase train
  python main.py --dataset ISIC --phase test
  python main.py --dataset ISIC --phase predict --input photo.jpg --output mask.png

Without flags it trains on the built-in data.
--phase PHASE --help shows the options of that phase."""


class Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=100)


# other words for a phase
MEANT_PHASE = {'validate': 'val', 'validation': 'val', 'inference': 'predict', 'infer': 'predict',
               'segment': 'predict', 'fit': 'train'}


class Parser(argparse.ArgumentParser):
    phase = ''  # that the command line names

    def error(self, message: str) -> NoReturn:
        hint = ''
        if message.startswith('unrecognized arguments:'):
            hint = self.what_was_meant(re.findall(r'(?<= )([-–—−]+)([A-Za-z][\w-]*)', message))
        elif wrong := re.match(r"argument --(\w+): invalid choice: '(.*?)' \(", message):
            words = MEANT_PHASE if wrong[1] == 'phase' else {}
            alike = words.get(wrong[2].lower()) or similar_word(
                wrong[2], OPTIONS[wrong[1]].metadata['choices'])
            hint = f'did you mean {alike}? ' if alike else ''
        raise UserError(f'{message}; {hint}python main.py --help lists the flags')

    def what_was_meant(self, flags: list[tuple[str, str]]) -> str:
        """The hint for unknown flags, each its dashes and its name; '' if there is none."""
        alike = {name: option for _, name in flags if (option := similar_option(name, self.phase))}
        which = ', '.join(f'--{option}' + f' for --{name}' * (len(flags) > 1)
                          for name, option in alike.items())
        has_dash = any(set(dashes) - {'-'} for dashes, _ in flags)
        return (f'did you mean {which}? ' * bool(which)
                + 'flags begin with two hyphens, not a dash; ' * has_dash)


def similar_option(name: str, phase: str = '') -> str:
    """The option of a phase (without one, of any) that somebody meant who wrote this name; '' if
    none is like it. A word for several options stands for the one of the fewest phases; without a
    phase, for that of training."""
    phases = {option: one.metadata['phases'] for option, one in OPTIONS.items()
              if not phase or phase in one.metadata['phases']}
    ranked = sorted(phases, key=lambda option: (
        not phase and 'train' not in phases[option], len(phases[option])))
    words = {word: option for option in reversed(ranked)
             for word in OPTIONS[option].metadata['synonyms']}
    plain = name.lower().replace('-', '_')
    close = difflib.get_close_matches(plain, words, 1, 0.82)  # further off, most are wrong
    return (words.get(plain) or similar_word(name, phases, 0.8)
            or (words[close[0]] if close else ''))


def boolean(text: str) -> bool:
    if text.lower() not in ('true', 'false', '1', '0'):
        raise argparse.ArgumentTypeError(f'{text!r} is neither True nor False')
    return text.lower() in ('true', '1')


def build_parser(phase: str = '') -> argparse.ArgumentParser:
    """A parser of all options that returns only the flags that were given; its help shows those of
    one phase, or all."""
    parser = Parser(prog='python main.py', argument_default=argparse.SUPPRESS, allow_abbrev=False,
                    usage='python main.py [--flag value ...]', description=EXAMPLES,
                    formatter_class=Formatter)
    parser.phase = phase
    groups = {title: parser.add_argument_group(title) for title in GROUPS}
    for name, one in OPTIONS.items():
        rules, kind = one.metadata, one.type
        settings: dict[str, Any] = {'type': kind, 'metavar': name.upper().split('_')[-1]}
        if rules['choices']:
            choices = [choice for choice in rules['choices'] if choice != '']
            settings = {'type': kind, 'choices': choices}
        elif kind is bool:
            settings = {'type': boolean, 'nargs': '?', 'const': True, 'metavar': 'True|False'}
        elif kind is tuple:
            settings = {'nargs': '+', 'metavar': 'FILE' if name == 'checkpoint' else name.upper(),
                        'action': 'extend' if name == 'input' else 'store'}
        elif kind not in (int, float, str):
            settings['type'] = int
        unit = f', {rules["unit"]}' if rules['unit'] else ''
        text = f'{rules["help"]} (default: {default_text(name)}{unit})'.replace('%', '%%')
        hidden = phase and phase not in rules['phases']
        settings['help'] = argparse.SUPPRESS if hidden else text
        groups[rules['group']].add_argument(f'--{name}', **settings)
    return parser


def phase_in(arguments: list[str]) -> str:
    """The phase that a command line names, '' if none."""
    words = [word for argument in arguments for word in argument.split('=', 1)]
    named = [after for word, after in zip(words, words[1:], strict=False) if word == '--phase']
    return named[-1] if named and named[-1] in PHASES else ''


@contextmanager
def one_voice() -> Iterator[None]:
    """Of several processes (torchrun) the first one alone prints."""
    if os.environ.get('RANK', '0') == '0':
        yield
        return
    os.environ['TQDM_DISABLE'] = '1'
    with open(os.devnull, 'w', **TEXT) as nowhere, redirect_stdout(nowhere):
        yield


def main() -> int:
    """Exit code: 0 done, or stopped by a signal with everything saved; 1 stopped by something that
    went wrong; 2 bad input; 130 left at once."""
    try:
        with one_voice(), signals.handled():
            print_any_character()
            for argument in sys.argv[1:]:
                if re.fullmatch('--[^=]+=--', argument):  # argparse makes an empty list of it
                    raise UserError(f'{argument}: -- is no value')
            flags = vars(build_parser(phase_in(sys.argv[1:])).parse_args())
            phases = {'prepare': workflow.prepare, 'predict': workflow.use_network,
                      'export': workflow.use_network, 'evaluate': workflow.evaluate}
            if ignored := workflow.ignored_flags(flags):
                print(ignored)
            return phases.get(flags.get('phase'), workflow.run)(flags)
    except UserError as error:
        if os.environ.get('LOCAL_RANK', '0') == '0':  # once on every machine
            print(f'error: {printable(error)}{error.listing}', file=sys.stderr)
        else:  # torchrun ends the others as soon as one has failed: let the first one speak
            time.sleep(3)
        return 2
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130  # as shells have it
    except OSError as error:  # a full disk, a folder that went away
        too_long, remedy = error.errno == errno.ENAMETOOLONG, REMEDIES.get(error.errno)
        text = f'{error.filename}: {error.strerror}; {remedy}' if remedy else error
        text = f'{error.filename}: too long for a file name; give another' if too_long else text
        print(f'error: {printable(text)}', file=sys.stderr)
        return 2 if too_long else 1
    except (MemoryError, RuntimeError) as error:
        out_of_memory = re.search(r"out of memory|can't allocate memory", str(error))
        if isinstance(error, RuntimeError) and not out_of_memory:
            raise
        print('error: out of memory; lower --batch_size, --img_size or --ch, or, if it is the '
              "machine's own memory, --cache_mb", file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main())
