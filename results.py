"""What a test writes: pictures of every case, metrics.csv, metrics.json and a table."""
import csv
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

import pictures
from dataset import Case, read_label, read_picture
from metrics import FIGURES, five_figures, mean_figures
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

    def write_made(self, case: Case, image: np.ndarray, soft, stage_1_mask: Path | None) -> None:
        """What the network made of a picture (a masks.SoftMask), and what it started from."""
        self.show('image', image)
        if stage_1_mask:
            self.write('stage_1_mask', case.name, np.asarray(read_picture(stage_1_mask, 1)))
        self.write('mask', case.name, soft.mask)
        if soft.heatmap is not None:
            self.write('heatmap', case.name, pictures.from_heatmap(soft.heatmap))
        if soft.fake is not None:
            self.write('translated', case.name, soft.fake)

    def write_segmentation(self, case: Case, image: np.ndarray, segmentation: np.ndarray,
                           with_overlay: bool) -> None:
        """A segmentation H×W bool, its figures where there is a label, its outlines on the image."""
        self.write('segmentation', case.name, segmentation.astype(np.uint8) * 255)
        overlay, shown = image, np.full(segmentation.shape, 127, np.uint8)  # grey: no label
        if case.label:
            label = read_label(case.label)
            self.rows.append({'name': case.name, **five_figures(segmentation, label)})
            overlay = pictures.outline(image, label, pictures.LABEL_COLOUR)
            shown = label.astype(np.uint8) * 255
        self.show('label', shown)
        if with_overlay:
            self.write('overlay', case.name,
                       pictures.outline(overlay, segmentation, pictures.SEGMENTATION_COLOUR))

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
