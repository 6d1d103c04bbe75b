"""What a test and a val run write for people: images of every case, tables and reports.

Metrics come in as data: `rows` hold, for each labeled case, its `name` and its metrics in percent.
"""
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dataset import Case, read_image, read_label
from reporting import report, visualize
from reporting.report import MetricInfo, Summarize, Summary
from reporting.tables import TableWriter, open_table, rounded
from runtime import distributed
from runtime.files import TEXT, atomic_write, make_folder, writing
from runtime.staging import new_staging_folder

MAX_IN_REPORT = 2000
KINDS = ('image', 'heatmap', 'teacher_mask', 'mask', 'segmentation', 'label', 'translation',
         'overlay')  # in display order
WRITTEN_KINDS = (*(kind for kind in KINDS if kind not in ('image', 'label')),
                 'translation_B')  # folders of a test

Row = dict[str, Any]  # name and metrics of one case


class ResultFolder:
    """The folder of one test, `results/<dataset>/test<stage>/<checkpoint stem>/`. Everything is
    written beside it, by any number of threads and processes; `finish` replaces earlier results."""

    def __init__(self, folder: Path) -> None:
        self.final = make_folder(folder)
        self.folder = distributed.from_main(lambda: new_staging_folder(folder))

    def write(self, kind: str, name: str, image: np.ndarray) -> None:
        """One uint8 image H×W or H×W×3 as `<kind>/<name>.png`."""
        with writing(self.final / kind / f'{name}.png'):
            # lowest compression: a fifth of the time, files a little larger
            Image.fromarray(image).save(make_folder(self.folder / kind) / f'{name}.png',
                                        compress_level=1)

    def write_network_output(self, case: Case, soft: Any, teacher_mask: Path | None) -> None:
        """Soft mask, heatmap and translation of `soft`, a SoftMask, and any mask of the teacher."""
        if teacher_mask:
            self.write('teacher_mask', case.name, np.asarray(read_image(teacher_mask, 1)))
        self.write('mask', case.name, soft.mask)
        if soft.heatmap is not None:
            self.write('heatmap', case.name, visualize.from_heatmap(soft.heatmap))
        if soft.translation is not None:
            self.write('translation', case.name, soft.translation)

    def write_segmentation(self, case: Case, segmentation: np.ndarray, image: np.ndarray | None,
                           label: np.ndarray | None) -> None:
        """A segmentation H×W bool and, of an image H×W×3 uint8, the overlay with its label."""
        self.write('segmentation', case.name, segmentation.astype(np.uint8) * 255)
        if image is not None:
            self.write('overlay', case.name, visualize.overlay(image, segmentation, label))

    def write_overview(self, cases: list[Case], rows: list[Row]) -> None:
        """`overview.png`: some cases from the lowest to the highest JA, see report.overview."""
        metrics = {row['name']: row for row in rows}
        chosen = report.across_ranking(
            cases, lambda case: metrics.get(case.name, {}).get('JA'))
        grid = report.overview(report.Entry(case.name, self._images_of(case),
                                            metrics.get(case.name)) for case in chosen)
        with writing(self.final / 'overview.png'):
            Image.fromarray(grid).save(self.folder / 'overview.png')

    def write_metrics(self, used: dict[str, Any], rows: list[Row], summary: Summary,
                      metric_names: Iterable[str]) -> None:
        """See the function `write_metrics`. `used` says how they came about: files, stage,
        post-processing."""
        with writing(self.final / 'metrics.csv'):
            write_metrics(self.folder, used | metrics_record(rows, summary), rows,
                          ['name', *summary.get('mean', metric_names)])

    def write_report(self, used: dict[str, Any], cases: list[Case], rows: list[Row],
                     metric_info: MetricInfo, summarize: Summarize) -> None:
        """report.html of the test, `used` as in `write_metrics`. Of more than MAX_IN_REPORT cases
        it shows those of lowest JA and then, those without a label, the first."""
        metrics = {row['name']: {name: row[name] for name in metric_info if name in row}
                   for row in rows}
        by_ja = sorted(cases, key=lambda case: metrics.get(case.name, {}).get('JA', 101))
        shown = set(by_ja[:MAX_IN_REPORT])
        facts = {name.replace('_', ' '):
                 '; '.join(map(str, value)) if isinstance(value, list) else str(value)
                 for name, value in used.items() if value not in (None, False, [])}
        if len(cases) > len(shown):
            facts['shown below'] = f'{len(shown)} of {len(cases)} images, those of lowest JA first'
        entries = (report.Entry(case.name, self._images_of(case), metrics.get(case.name))
                   for case in cases if case in shown)
        report.write(self.folder / 'report.html', f'{used["dataset"]}: test', facts, entries,
                     metric_info, summarize)

    def finish(self) -> None:
        """Replace the results of an earlier test of this checkpoint by these; other files stay."""
        with writing(self.final):
            for name in WRITTEN_KINDS:
                shutil.rmtree(self.final / name, ignore_errors=True)
            for path in self.folder.iterdir():
                path.replace(self.final / path.name)
        shutil.rmtree(self.folder.parent, ignore_errors=True)

    def _images_of(self, case: Case) -> dict[str, np.ndarray | Path]:
        """All images of a case by kind in display order: files, and the label as an array."""
        images = {kind: self.folder / kind / f'{case.name}.png' for kind in KINDS}
        images['image'] = case.image
        if case.label:
            images['label'] = visualize.from_mask(read_label(case.label, case.image))
        return {kind: image for kind, image in images.items()
                if not isinstance(image, Path) or image.is_file()}


def write_val_report(path: Path, dataset_name: str, facts: dict[str, str], cases: list[Case],
                     masks: list[np.ndarray], metric_info: MetricInfo, *,
                     segment: Callable[[np.ndarray, np.ndarray], np.ndarray],
                     compute_metrics: Callable[[np.ndarray, np.ndarray], dict[str, float]],
                     summarize: Summarize) -> None:
    """report.html of val: labeled cases with the segmentations that val's choice makes. `masks` are
    the soft masks H×W uint8 of the cases; `segment` makes of a soft mask and its image H×W×3 uint8
    the segmentation H×W bool, and `compute_metrics` compares that with the label."""
    def entries() -> Iterator[report.Entry]:
        for case, mask in zip(cases, masks, strict=True):
            image = np.asarray(read_image(case.image))
            label = read_label(case.label, case.image)
            segmentation = segment(mask, image)
            yield report.Entry(case.name, {
                'image': image, 'mask': mask, 'segmentation': segmentation.astype(np.uint8) * 255,
                'label': label.astype(np.uint8) * 255,
                'overlay': visualize.overlay(image, segmentation, label)},
                compute_metrics(segmentation, label))

    report.write(path, f'{dataset_name}: val', facts, entries(), metric_info, summarize)


def metrics_record(rows: list[Row], summary: Summary) -> dict[str, Any]:
    """What metrics.json holds of metrics: means with their 95 % intervals, in percent and px or mm,
    of how many images a distance is undefined, and all rows; all empty without labels."""
    mean, low, high = (summary.get(name, {}) for name in ('mean', '95 % from', '95 % to'))
    return {'images': len(rows), 'mean': mean,
            'interval': {short: [low[short], high[short]] for short in mean},
            'undefined': summary.get('undefined', {}), 'per_image': rows}


def write_metrics(folder: Path, content: dict[str, Any], rows: list[Row],
                  columns: list[str]) -> None:
    """metrics.csv, one image a row, and metrics.json."""
    with (atomic_write(folder / 'metrics.csv') as temporary, open_table(temporary) as file):
        writer = TableWriter(file, columns)
        for row in rows:
            writer.writerow(row)
    with atomic_write(folder / 'metrics.json') as temporary:
        temporary.write_text(json.dumps(content, indent=2) + '\n', **TEXT)


def table(summary: Summary, labeled_count: int, case_count: int,
          what: str = 'images have labels') -> str:
    """Mean, 95 % interval, median, lowest and highest of all metrics over the labeled cases, and of
    how many a distance is undefined, to print."""
    names = next(iter(summary.values()))
    units = 'percent, px' + ', mm' * any(name.endswith('_mm') for name in names)
    lines = [f'{labeled_count} of {case_count} {what}'.ljust(32)
             + ''.join(f'{name:>8}' for name in names) + f'  {units}']
    for statistic, values in summary.items():
        lines.append(statistic.ljust(32) + ''.join(f'{rounded(value):>8}'
                                                   for value in values.values()))
    return '\n'.join(lines)
