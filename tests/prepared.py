"""What --phase prepare wrote."""
import json
from pathlib import Path
from typing import Any


def stems(folder: Path) -> set[str]:
    """Names of a folder's images without `.png`; empty where there is no folder."""
    return {path.stem for path in folder.glob('*.png')}


def description(folder: Path) -> dict[str, Any]:
    """Content of a data set's prepare.json."""
    return json.loads((folder / 'prepare.json').read_text('utf-8'))


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files below a folder with their content."""
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob('*')) if path.is_file()}
