"""What a training run writes beside its checkpoints: losses.csv, val.csv, their curves, sheets."""
import csv
import itertools
from datetime import datetime
from pathlib import Path

import numpy as np
from PIL import Image

import curves
import pictures
from metrics import FIGURES
from utils import make_folder


MOST_SHEETS = 200


def set_earlier_run_aside(result_folder: Path, stage: int) -> Path | None:
    """Move what an earlier run and its tests left to `earlier_<time>`; None if there was no run.

    A new run never overwrites an old one.
    """
    folders = {kind: result_folder / f'{kind}{stage}' for kind in ('model', 'img', 'log', 'test')}
    old = [folder for folder in folders.values() if folder.is_dir() and any(folder.iterdir())]
    if not old or old == [folders['test']]:  # a test of another checkpoint is no run
        return None
    name = f'earlier_{datetime.now():%Y%m%d_%H%M%S}'
    aside = next(folder for number in itertools.count(1)  # several runs may begin in one second
                 if not (folder := result_folder / (name + (f'_{number}' if number > 1 else '')))
                 .exists())
    make_folder(aside)
    for folder in old:
        folder.rename(aside / folder.name)
    return aside


class CsvLog:
    """A table on disk that grows by rows; the first column is the iteration."""

    def __init__(self, path: Path, columns: list[str], start: int):
        """Opens `path`, keeping only what it holds up to iteration `start`."""
        kept = []
        if start and path.is_file():
            with open(path, newline='') as file:
                kept = [row for row in csv.reader(file)
                        if row and row[0].isdigit() and int(row[0]) <= start]
        self.file = open(path, 'w', newline='')
        self.writer = csv.writer(self.file)
        self.writer.writerows([['iteration', *columns], *kept])

    def write(self, iteration: int, values: dict[str, float]) -> None:
        self.writer.writerow([iteration, *(f'{value:.6g}' for value in values.values())])

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class TrainingLog:
    """The logs of one run of one stage, from iteration `start` on; one that does not write takes
    everything and keeps nothing (the other processes of a run)."""

    def __init__(self, result_folder: Path, stage: int, start: int, loss_names: list[str],
                 writes: bool = True):
        self.writes = writes
        if not writes:
            return
        from torch.utils.tensorboard import SummaryWriter  # seconds to import, used only here

        folder = self.folder = make_folder(result_folder / f'log{stage}')
        self.sheet_folder = make_folder(result_folder / f'img{stage}')
        self.losses = CsvLog(folder / 'losses.csv', loss_names, start)
        self.val = CsvLog(folder / 'val.csv', list(FIGURES), start)
        self.score = None  # opened where there are scores
        self.score_place = folder / 'score.csv', ['score'], start
        self.board = SummaryWriter(str(folder), purge_step=start + 1 if start else None)

    def add_losses(self, iteration: int, losses: dict[str, float]) -> None:
        if not self.writes:
            return
        self.losses.write(iteration, losses)
        for name, value in losses.items():
            self.board.add_scalar(f'loss/{name}', value, iteration)

    def add_val(self, iteration: int, figures: dict[str, float]) -> None:
        if not self.writes:
            return
        self.val.write(iteration, figures)
        for name, value in figures.items():
            self.board.add_scalar(f'val/{name}', value, iteration)
        self.flush()

    def add_score(self, iteration: int, score: float) -> None:
        """The label-free score, percent."""
        if not self.writes:
            return
        self.score = self.score or CsvLog(*self.score_place)
        self.score.write(iteration, {'score': score})
        self.board.add_scalar('val/label-free score', score, iteration)
        self.flush()

    def add_sheet(self, iteration: int, rows: dict[str, list[np.ndarray]]) -> None:
        """`A2B_<7 digits>.png`: the rows under each other. The newest MOST_SHEETS stay; TensorBoard,
        whose files only grow, gets no more than that either."""
        sheet = pictures.sheet(rows)
        Image.fromarray(sheet).save(self.sheet_folder / f'A2B_{iteration:07d}.png')
        there = sorted(self.sheet_folder.glob('A2B_*.png'))
        for path in there[:-MOST_SHEETS]:
            path.unlink()
        if len(there) <= MOST_SHEETS:
            self.board.add_image('A2B', sheet, iteration, dataformats='HWC')
        self.flush()
        curves.draw(self.folder)

    def flush(self) -> None:
        if not self.writes:
            return
        self.losses.flush()
        self.val.flush()
        if self.score:
            self.score.flush()
        self.board.flush()

    def close(self) -> None:
        if not self.writes:
            return
        self.losses.close()
        self.val.close()
        if self.score:
            self.score.close()
        self.board.close()
        curves.draw(self.folder)
