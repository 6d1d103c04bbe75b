"""What a training run writes beside its checkpoints: losses.csv, val.csv, score.csv, curves.png,
TensorBoard files and image grids."""
import csv
import itertools
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import numpy as np
from PIL import Image

from reporting import curves, visualize
from runtime.files import TEXT, atomic_write, make_folder, remove_temporary, writing

MAX_IMAGE_GRIDS = 200
STEP_COLUMNS = ('mask_share', 'skipped')  # of losses.csv, behind the losses


def archive_earlier_run(result_folder: Path, stage: int) -> Path | None:
    """Move what an earlier run of a stage and its tests left to `earlier_<time>`, so that a new run
    overwrites nothing. Returns that folder, or None if there was no run."""
    folders = {kind: result_folder / f'{kind}{stage}' for kind in ('model', 'img', 'log', 'test')}
    earlier = [folder for folder in folders.values() if folder.is_dir() and any(folder.iterdir())]
    if not earlier or earlier == [folders['test']]:  # a test of some other checkpoint is no run
        return None
    name = f'earlier_{datetime.now():%Y%m%d_%H%M%S}'
    names = (name + (f'_{number}' if number > 1 else '')  # several runs may begin in one second
             for number in itertools.count(1))
    archive = make_folder(next(result_folder / name for name in names
                               if not (result_folder / name).exists()))
    for folder in earlier:
        folder.rename(archive / folder.name)
    return archive


class CsvLog:
    """A table of numbers on disk that grows by rows; the first column is the iteration."""

    def __init__(self, path: Path, columns: Iterable[str], start: int) -> None:
        """Opens `path`; of the rows that are there already those up to iteration `start` stay."""
        self.path, self.columns, kept = path, tuple(columns), []
        if start and path.is_file():
            with open(path, newline='', **TEXT) as file:
                kept = [row for row in csv.reader(file)
                        if row and row[0].isdigit() and int(row[0]) <= start]
        with atomic_write(path) as temporary, open(temporary, 'w', newline='', **TEXT) as file:
            csv.writer(file).writerows([['iteration', *self.columns], *kept])
        self.file = open(path, 'a', newline='', **TEXT)
        self.writer = csv.writer(self.file)

    def write(self, iteration: int, values: dict[str, float]) -> None:
        """Add a row of `values` by column name; raises ValueError unless all columns are there."""
        if values.keys() != set(self.columns):
            missing = [name for name in self.columns if name not in values]
            unknown = [name for name in values if name not in self.columns]
            raise ValueError(f'{self.path}: a row has to have the declared columns; missing: '
                             f'{", ".join(missing) or "none"}; unknown: '
                             f'{", ".join(unknown) or "none"}')
        with writing(self.path):
            self.writer.writerow([iteration, *(f'{values[name]:.6g}' for name in self.columns)])

    def close(self) -> None:
        self.file.close()


class TrainingLog:
    """The logs of one run of one stage, from iteration `start` on; a context manager. With `writes`
    False, as in all processes of a run but the main one, it writes nothing."""

    def __init__(self, result_folder: Path, stage: int, start: int, loss_names: Iterable[str],
                 metric_names: Iterable[str], writes: bool = True) -> None:
        self.writes = writes
        if not writes:
            return
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

        self.folder = make_folder(result_folder / f'log{stage}')
        self.image_folder = make_folder(result_folder / f'img{stage}')
        for folder in (self.folder, self.image_folder):
            remove_temporary(folder)
        self.start = start
        columns = {'losses': [*loss_names, *STEP_COLUMNS], 'val': metric_names}
        self.tables = {name: CsvLog(self.folder / f'{name}.csv', of_table, start)
                       for name, of_table in columns.items()}
        self.iteration = self.drawn_at = start  # of the newest row, and when curves were drawn
        self.board = SummaryWriter(str(self.folder), purge_step=start + 1 if start else None)

    def __enter__(self) -> 'TrainingLog':
        return self

    def __exit__(self, *error: object) -> None:
        """Close all files and draw the curves up to the last row."""
        if self.writes:
            for table in self.tables.values():
                table.close()
            self.board.close()
            if self.drawn_at != self.iteration:
                curves.draw(self.folder)

    def add_losses(self, iteration: int, values: dict[str, float]) -> None:
        """A row of losses.csv: losses and STEP_COLUMNS; raises ValueError unless all are there."""
        self._add('losses', iteration, values, 'loss/')
        self.iteration = iteration

    def add_val(self, iteration: int, metrics: dict[str, float]) -> None:
        """A row of val.csv: mean metrics, percent. Raises ValueError as `add_losses` does."""
        self._add('val', iteration, metrics, 'val/')
        self.flush()

    def add_score(self, iteration: int, score: float) -> None:
        """A row of score.csv, which only runs with it have: the label-free score, percent."""
        self._add('score', iteration, {'score': score}, 'val/label-free ')
        self.flush()

    def add_image_grid(self, iteration: int, columns: dict[str, dict[str, np.ndarray]]) -> None:
        """`A2B_<7 digits>.png`: images by title and kind, and the curves up to here. The
        newest MAX_IMAGE_GRIDS files stay; TensorBoard's only grow, so it gets no more than that."""
        if not self.writes:
            return
        grid = visualize.image_grid(columns)
        with atomic_write(self.image_folder / f'A2B_{iteration:07d}.png') as temporary:
            Image.fromarray(grid).save(temporary)
        files = sorted(self.image_folder.glob('A2B_*.png'))
        for path in files[:-MAX_IMAGE_GRIDS]:
            path.unlink()
        if len(files) <= MAX_IMAGE_GRIDS:
            self.board.add_image('A2B', grid, iteration, dataformats='HWC')
        self.flush()
        curves.draw(self.folder)
        self.drawn_at = iteration

    def flush(self) -> None:
        """Write to the disk what is still in memory."""
        if self.writes:
            with writing(self.folder):
                for table in self.tables.values():
                    table.file.flush()
                self.board.flush()

    def _add(self, table: str, iteration: int, values: dict[str, float], prefix: str) -> None:
        """A row of a table, and to TensorBoard its values as `<prefix><name>`."""
        if not self.writes:
            return
        if table not in self.tables:  # only of runs that have it
            self.tables[table] = CsvLog(self.folder / f'{table}.csv', values, self.start)
        self.tables[table].write(iteration, values)
        with writing(self.folder):
            for name, value in values.items():
                self.board.add_scalar(prefix + name, value, iteration)
