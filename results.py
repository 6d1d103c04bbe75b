"""What a test writes: pictures of every case, metrics.csv, metrics.json and a table."""
import csv
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

import parallel
import pictures
import report
from dataset import Case, read_label, read_picture
from metrics import FIGURES, five_figures, mean_figures
from utils import make_folder


OVERVIEW_CASES = 8
MOST_IN_REPORT = 2000
OVERVIEW_ROWS = ('image', 'heatmap', 'stage_1_mask', 'mask', 'segmentation', 'label', 'translated',
                 'overlay')


class ResultFolder:
    """The folder of one test, `results/<dataset>/test<stage>/<checkpoint stem>/`.

    Everything is written beside it, by any number of threads and processes, and takes the place of
    an earlier test's results in `finish`.
    """

    def __init__(self, folder: Path):
        self.final = make_folder(folder)
        self.folder = folder.with_name(f'.{folder.name}.part')
        if parallel.is_first():
            shutil.rmtree(self.folder, ignore_errors=True)  # of a test that was interrupted
        parallel.wait()
        make_folder(self.folder)
        self.rows = []  # one dict a labelled case: name and five figures

    def write(self, kind: str, name: str, picture: np.ndarray) -> None:
        """One uint8 picture as `<kind>/<name>.png`."""
        # the first level: a fifth of the time, files a little larger
        Image.fromarray(picture).save(make_folder(self.folder / kind) / f'{name}.png',
                                      compress_level=1)

    def write_overview(self, cases: list[Case]) -> None:
        """`overview.png`: the first cases, a row a kind."""
        rows = {}
        for case in cases[:OVERVIEW_CASES]:
            there = self._pictures_of(case)
            image = np.asarray(read_picture(case.picture))
            unlabelled = {'label': np.full_like(image, 127)}  # grey
            for kind in OVERVIEW_ROWS:
                picture = (unlabelled | there).get(kind)
                if isinstance(picture, Path):
                    picture = np.asarray(read_picture(picture))
                if picture is not None:
                    rows.setdefault(kind, []).append(picture)
        Image.fromarray(pictures.sheet(rows)).save(self.folder / 'overview.png')

    def write_made(self, case: Case, soft, stage_1_mask: Path | None) -> None:
        """What the network made of a picture (a masks.SoftMask), and what it started from."""
        if stage_1_mask:
            self.write('stage_1_mask', case.name, np.asarray(read_picture(stage_1_mask, 1)))
        self.write('mask', case.name, soft.mask)
        if soft.heatmap is not None:
            self.write('heatmap', case.name, pictures.from_heatmap(soft.heatmap))
        if soft.fake is not None:
            self.write('translated', case.name, soft.fake)

    def write_segmentation(self, case: Case, segmentation: np.ndarray,
                           image: np.ndarray | None) -> dict | None:
        """A segmentation H×W bool and, with an image, its outlines on it; the row of its figures
        where there is a label."""
        self.write('segmentation', case.name, segmentation.astype(np.uint8) * 255)
        label = read_label(case.label) if case.label else None
        if image is not None:
            self.write('overlay', case.name, pictures.outlines(image, segmentation, label))
        return label if label is None else {'name': case.name,
                                            **five_figures(segmentation, label)}

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

    def _pictures_of(self, case: Case) -> dict[str, np.ndarray | Path]:
        """What there is of a case, in the order it is shown: files, and the label as a picture."""
        files = {kind: self.folder / kind / f'{case.name}.png' for kind in OVERVIEW_ROWS}
        there = files | {'image': case.picture}
        if case.label:
            there['label'] = pictures.from_mask(read_label(case.label))
        return {kind: picture for kind, picture in there.items()
                if not isinstance(picture, Path) or picture.is_file()}

    def write_report(self, used: dict, cases: list[Case]) -> None:
        """report.html; of very many cases it shows those of lowest JA, without labels the first."""
        figures = {row['name']: {figure: row[figure] for figure in FIGURES} for row in self.rows}
        shown = sorted(cases, key=lambda case: figures.get(case.name, {}).get('JA', 101))
        shown = set(shown[:MOST_IN_REPORT])

        def entries():
            for case in cases:
                if case not in shown:
                    continue
                yield report.Entry(case.name, self._pictures_of(case), figures.get(case.name))

        facts = {name.replace('_', ' '): str(value) for name, value in used.items()
                 if value not in (None, False, [])}
        if len(cases) > len(shown):
            facts['shown below'] = f'{len(shown)} of {len(cases)} pictures, those of lowest JA first'
        report.write(self.folder / 'report.html', f'{used["dataset"]}: test', facts, entries())

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
