"""What a test writes: pictures of every case, metrics.csv, metrics.json and a table."""
import csv
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

import pictures
from metrics import FIGURES, mean_figures
from utils import make_folder


OVERVIEW_CASES = 8
OVERVIEW_ROWS = ('image', 'heatmap', 'stage_1_mask', 'mask', 'segmentation', 'label', 'translated',
                 'overlay')


class ResultFolder:
    """The folder of one test, `results/<dataset>/test<stage>/<checkpoint stem>/`.

    Everything is written beside it and takes the place of an earlier test's results in `finish`.
    """

    def __init__(self, folder: Path):
        self.final = make_folder(folder)
        self.folder = folder.with_name(f'.{folder.name}.part')
        shutil.rmtree(self.folder, ignore_errors=True)  # of a test that was interrupted
        make_folder(self.folder)
        self.rows = []  # one dict a labelled case: name and five figures
        self.overview = {}  # kind -> pictures of the first cases

    def write(self, kind: str, name: str, picture: np.ndarray) -> None:
        """One uint8 picture as `<kind>/<name>.png`."""
        Image.fromarray(picture).save(make_folder(self.folder / kind) / f'{name}.png')
        self.show(kind, picture)

    def show(self, kind: str, picture: np.ndarray) -> None:
        """Let a uint8 picture be part of the overview, if it is of one of the first cases."""
        column = self.overview.setdefault(kind, [])
        if len(column) < OVERVIEW_CASES:
            column.append(picture if picture.ndim == 3 else np.stack([picture] * 3, -1))

    def write_overview(self) -> None:
        """`overview.png`: the first cases, a row a kind."""
        rows = {kind: self.overview[kind] for kind in OVERVIEW_ROWS if kind in self.overview}
        Image.fromarray(pictures.sheet(rows)).save(self.folder / 'overview.png')

    def write_overlay(self, name: str, image: np.ndarray, segmentation: np.ndarray, label) -> None:
        """The image with the outline of the segmentation and, where there is one, the label."""
        if label is not None:
            image = pictures.outline(image, label, pictures.LABEL_COLOUR)
        self.write('overlay', name,
                   pictures.outline(image, segmentation, pictures.SEGMENTATION_COLOUR))

    def add_figures(self, name: str, figures: dict[str, float]) -> None:
        self.rows.append({'name': name, **figures})

    def write_metrics(self, used: dict) -> None:
        """metrics.csv, an image a row, and metrics.json with their means, in percent.

        `used` says what made them: files, stage, post-processing.
        """
        with open(self.folder / 'metrics.csv', 'w', newline='') as file:
            writer = csv.DictWriter(file, ['name', *FIGURES])
            writer.writeheader()
            writer.writerows(self.rows)
        summary = {**used, 'images': len(self.rows), 'mean': mean_figures(self.rows),
                   'per_image': self.rows}
        (self.folder / 'metrics.json').write_text(json.dumps(summary, indent=2) + '\n')

    def finish(self) -> None:
        """Replace the results of an earlier test of this checkpoint by these."""
        for name in (*OVERVIEW_ROWS, 'translated_B'):
            shutil.rmtree(self.final / name, ignore_errors=True)
        for path in self.folder.iterdir():
            path.replace(self.final / path.name)
        self.folder.rmdir()

    def table(self, cases: int) -> str:
        """Mean, median, lowest and highest of the five figures of `cases` pictures, to print."""
        lines = [f'{len(self.rows)} of {cases} images have labels'.ljust(32)
                 + ''.join(f'{figure:>8}' for figure in FIGURES) + '  percent']
        for name, summary in (('mean', np.mean), ('median', np.median),
                              ('lowest', np.min), ('highest', np.max)):
            lines.append(name.ljust(32) + ''.join(
                f'{summary([row[figure] for row in self.rows]):8.1f}' for figure in FIGURES))
        return '\n'.join(lines)
