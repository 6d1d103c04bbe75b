"""curves.png: the losses of a run and its figures on val, from what it wrote.

    python curves.py LOG_FOLDER        # results/<name>/log1, say

draws them anew, also while the run goes on.
"""
import csv
import sys
from pathlib import Path

import numpy as np
from scipy.ndimage import median_filter

WIDTH = 4  # panels side by side
SMOOTHED_OVER = 30  # of a run's rows one median spans this part
SHOWN_OF_VAL = ('JA', 'DI', 'SE')
LINE, FAINT = '#1b5e9b', '#b8c9d9'


def read(path: Path) -> dict[str, np.ndarray]:
    """The columns of a table of numbers by name; {} of a file that is missing or holds no row."""
    if not path.is_file():
        return {}
    with open(path, newline='') as file:
        rows = [row for row in csv.reader(file) if row]
    names, numbers = rows[0] if rows else [], []
    for row in rows[1:]:
        try:
            numbers.append([float(value) for value in row])
        except ValueError:
            continue
        if len(row) != len(names):  # still being written
            numbers.pop()
    return dict(zip(names, np.array(numbers).T)) if numbers else {}


def draw(folder: Path) -> Path | None:
    """Draw losses.csv, val.csv and score.csv of a folder as its curves.png; None where there is
    nothing to draw. A loss has a panel of its own, faint as measured and strong as running median;
    losses that are 0 throughout are left out."""
    from matplotlib.figure import Figure  # a second to import; without pyplot, which keeps figures

    losses = read(folder / 'losses.csv')
    scored = {'val (percent)': {name: values for name, values in read(folder / 'val.csv').items()
                                if name in ('iteration', *SHOWN_OF_VAL)},
              'label-free score (percent)': read(folder / 'score.csv')}
    scored = {title: table for title, table in scored.items() if table}
    names = [name for name, values in losses.items() if name != 'iteration'
             and np.nan_to_num(values).any()]
    count = len(names) + len(scored)
    if not count:
        return None
    height = -(-count // WIDTH)
    figure = Figure(figsize=(3.3 * min(count, WIDTH), 2.4 * height), layout='constrained')
    panels = figure.subplots(height, min(count, WIDTH), squeeze=False).ravel()
    for panel, (title, table) in zip(panels, scored.items()):
        iteration = table['iteration']
        for name, values in table.items():
            if name != 'iteration':
                panel.plot(iteration, values, marker='.', label=name)
        panel.set_title(title, fontsize=10)
        panel.set_ylim(0, 100)
        panel.legend(fontsize=8)
    for panel, name in zip(panels[len(scored):], names):
        iteration, values = losses['iteration'], losses[name]
        panel.plot(iteration, values, color=FAINT, linewidth=0.7)
        panel.plot(iteration, median_filter(values, max(1, len(values) // SMOOTHED_OVER),
                                            mode='nearest'), color=LINE)
        low, high = np.nanpercentile(np.where(np.isfinite(values), values, np.nan), (0, 99))
        if low > 0 and high > 20 * low:  # a fall over more than a decade reads better by its powers
            panel.set_yscale('log')
        panel.set_title(name.replace('_', ' '), fontsize=10)
    for panel in panels[count:]:
        panel.set_axis_off()
    for panel in panels[:count]:
        panel.grid(alpha=0.3)
        panel.tick_params(labelsize=8)
        panel.set_xlabel('iteration', fontsize=8)
    path = folder / 'curves.png'
    temporary = folder / '.curves.png'
    figure.savefig(temporary, dpi=110, format='png')
    temporary.replace(path)
    return path


if __name__ == '__main__':
    if len(sys.argv) != 2 or not draw(Path(sys.argv[1])):
        print('usage: python curves.py LOG_FOLDER, one that holds losses.csv', file=sys.stderr)
        sys.exit(2)
    print(Path(sys.argv[1]) / 'curves.png')
