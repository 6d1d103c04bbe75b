"""What the scripts share. Importing it makes the program's and the tests' modules importable."""
import argparse
import os
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / 'tests')]


def parser_of(text: str) -> argparse.ArgumentParser:
    """A parser whose help begins with the script's own text."""
    return argparse.ArgumentParser(description=text,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)


def fuzz_options(text: str, count: int = 500) -> argparse.Namespace:
    """The flags of a fuzzer: how many inputs to try, and the seed that they are drawn from."""
    parser = parser_of(text)
    parser.add_argument('--count', type=int, default=count)
    parser.add_argument('--seed', type=int, default=0)
    return parser.parse_args()


def resident_memory(process: int | str = 'self') -> float:
    """The memory of a process, MB (Linux)."""
    pages = int(Path(f'/proc/{process}/statm').read_text('utf-8').split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 1e6
