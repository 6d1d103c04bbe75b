"""What grey levels alone give, without any training: baselines for the benchmarks.

    python benchmarks/grey_levels.py dark FOLDER           dermoscopy: dark is lesion
    python benchmarks/grey_levels.py bright FOLDER         FLAIR slices: bright inside the head
    python benchmarks/grey_levels.py bright FOLDER OUTPUT  the same as stage-1 masks: a data set of
                                                           links to FOLDER with folders syn_* in it
FOLDER is a data set. Figures are of test.
"""
import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import dataset  # noqa: E402
from masks import SPLITS  # noqa: E402
from metrics import five_figures, mean_figures  # noqa: E402
import outline  # noqa: E402
from postprocess import otsu, to_bytes  # noqa: E402


def dark(grey):
    return 255 - grey


def bright(grey, rim=20):
    """How far a blurred FLAIR slice is above its median, in the head's outline less `rim` px."""
    blurred = cv2.GaussianBlur(grey, (0, 0), 3)
    count, labels, stats, _ = cv2.connectedComponentsWithStats((blurred > 20).astype(np.uint8))
    if count < 2:
        return np.zeros_like(grey)
    head = (labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)
    outlines, _ = cv2.findContours(head, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    head = cv2.drawContours(np.zeros_like(head), outlines, -1, 1, cv2.FILLED)
    inside = cv2.erode(head, np.ones((3, 3), np.uint8), iterations=rim) > 0
    if inside.sum() < 100:
        return np.zeros_like(grey)
    levels = blurred[inside].astype(float)
    return to_bytes((blurred - np.median(levels)) / (4 * levels.std() + 1e-6) * inside)


def main(kind, folder, output=None):
    """Print the figures of a rule on test; with `output`, write its masks as a data set too."""
    make = {'dark': dark, 'bright': bright}[kind]
    folder = Path(folder).resolve()
    rows = {'otsu': [], 'otsu, cleaned': []}
    for case in dataset.find_cases(folder, 'test'):
        if case.label:
            found = otsu(make(np.asarray(dataset.read_picture(case.picture, channels=1))))
            label = dataset.read_label(case.label)
            rows['otsu'].append(five_figures(found, label))
            rows['otsu, cleaned'].append(five_figures(outline.clean(found, 'large'), label))
    for name, figures in rows.items():
        print(name, {figure: round(value, 1) for figure, value in mean_figures(figures).items()})
    if not output:
        return
    data = Path(output) / folder.name
    data.mkdir(parents=True)
    for path in folder.iterdir():
        (data / path.name).symlink_to(path)
    for split, pictures in SPLITS.items():
        (data / f'syn_{split}').mkdir()
        for path in dataset.list_pictures(folder / pictures):
            mask = make(np.asarray(dataset.read_picture(path, channels=1)))
            Image.fromarray(mask).save(data / f'syn_{split}' / f'{path.stem}.png')
    print(f'stage-1 masks: {data}/syn_*')


if __name__ == '__main__':
    if len(sys.argv) not in (3, 4) or sys.argv[1] not in ('dark', 'bright'):
        sys.exit(__doc__)
    main(*sys.argv[1:])
