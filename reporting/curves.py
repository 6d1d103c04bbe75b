"""curves.png: the losses of a run and its metrics on val, drawn from the tables it wrote.

    python -m reporting.curves LOG_FOLDER        # for example results/<name>/log1

draws them anew, also while the run goes on."""
import csv
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from runtime.files import TEXT, atomic_write

COLUMNS = 4  # panels side by side
PANEL_SIZE = 3.3, 2.4  # inches
LEGEND_HEIGHT = 0.25  # inches
SMOOTHED_SHARE = 30  # the running median spans 1/30 of a run's rows
VAL_METRICS = ('JA', 'DI', 'SE')
LINE_COLOR, FAINT_COLOR = '#1b5e9b', '#b8c9d9'


def read(path: Path) -> dict[str, np.ndarray]:
    """The columns of a table of numbers by name; {} for a file that is missing or holds no row."""
    if not path.is_file():
        return {}
    with open(path, newline='', **TEXT) as file:
        names, *rows = [row for row in csv.reader(file) if row] or [[]]
    numbers = []
    for row in rows:
        with suppress(ValueError):
            if len(row) == len(names):  # not still being written
                numbers.append([float(value) for value in row])
    return dict(zip(names, np.array(numbers).T, strict=True)) if numbers else {}


def draw(folder: Path) -> Path | None:
    """Draw losses.csv, val.csv and score.csv of a folder as its curves.png; returns that, or None
    where there is nothing to draw. A loss that is not 0 throughout has a panel with its median."""
    from matplotlib.figure import Figure  # takes a second; not pyplot, which keeps all figures
    from scipy.ndimage import median_filter

    losses = read(folder / 'losses.csv')
    val = {name: values for name, values in read(folder / 'val.csv').items()
           if name in ('iteration', *VAL_METRICS)}
    tables = {'val (percent)': val, 'label-free score (percent)': read(folder / 'score.csv')}
    tables = {title: table for title, table in tables.items() if table}
    names = [name for name, values in losses.items() if name != 'iteration'
             and np.nan_to_num(values).any()]
    count = len(names) + len(tables)
    if not count:
        return None
    width, height = min(count, COLUMNS), -(-count // COLUMNS)
    wide, high = PANEL_SIZE[0] * width, PANEL_SIZE[1] * height + LEGEND_HEIGHT
    figure = Figure(figsize=(wide, high))
    # inches around and between panels (matplotlib's own layouts draw everything twice)
    figure.subplots_adjust(left=0.6 / wide, right=1 - 0.1 / wide, bottom=0.5 / high,
                           top=1 - (0.3 + LEGEND_HEIGHT) / high, wspace=0.3, hspace=0.5)
    panels = list(figure.subplots(height, width, squeeze=False).ravel())
    for panel, table in zip(panels, tables.values(), strict=False):
        iterations = table.pop('iteration')
        for name, values in table.items():
            panel.plot(iterations, values, marker='.', label=name)
        panel.set_ylim(0, 100)
        panel.legend(fontsize=8)
    for panel, name in zip(panels[len(tables):], names, strict=False):
        iterations, values = losses['iteration'], losses[name]
        raw, = panel.plot(iterations, values, color=FAINT_COLOR, linewidth=0.7)
        smoothed = median_filter(values, max(1, len(values) // SMOOTHED_SHARE), mode='nearest')
        median, = panel.plot(iterations, smoothed, color=LINE_COLOR)
        low, high = np.nanpercentile(np.where(np.isfinite(values), values, np.nan), (0, 99))
        if low > 0 and high > 20 * low:  # more than a decade
            panel.set_yscale('log')
    for panel, title in zip(panels, [*tables, *names], strict=False):
        panel.set_title(title.replace('_', ' '), fontsize=10)
        panel.grid(alpha=0.3)
        panel.tick_params(labelsize=8)
        panel.set_xlabel('iteration', fontsize=8)
    for panel in panels[count:]:
        panel.set_axis_off()
    if names:
        figure.legend((raw, median), ('each iteration', 'running median'), fontsize=8,
                      loc='upper right', ncols=2, frameon=False, borderaxespad=0.4)
    with atomic_write(folder / 'curves.png') as temporary:
        figure.savefig(temporary, dpi=110, format='png')
    return folder / 'curves.png'


if __name__ == '__main__':
    if len(sys.argv) != 2 or not draw(Path(sys.argv[1])):
        print('usage: python -m reporting.curves LOG_FOLDER, one that holds losses.csv',
              file=sys.stderr)
        sys.exit(2)
    print(Path(sys.argv[1]) / 'curves.png')
