"""What gray levels alone give, without any training: a baseline.

    python benchmarks/gray_levels.py dark FOLDER    dermoscopy: dark is lesion
    python benchmarks/gray_levels.py bright FOLDER  FLAIR slices: bright inside the head

FOLDER is a data set. Metrics are of its test images.
"""
from pathlib import Path

import cv2
import numpy as np

from common import parser_of

# isort: split
import dataset
from inference.metrics import mean_metrics, segmentation_metrics
from inference.postprocess import otsu, to_bytes
from inference.refinement import clean

RIM = 20  # px inside the outline of the head that are no lesion; chosen on val


def bright(gray: np.ndarray) -> np.ndarray:
    """How far a blurred FLAIR slice is above its median, in the head's outline less RIM px."""
    blurred = cv2.GaussianBlur(gray, (0, 0), 3)
    count, labels, stats, _ = cv2.connectedComponentsWithStats((blurred > 20).astype(np.uint8))
    if count < 2:
        return np.zeros_like(gray)
    head = (labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)
    outlines, _ = cv2.findContours(head, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    head = cv2.drawContours(np.zeros_like(head), outlines, -1, 1, cv2.FILLED)
    inside = cv2.erode(head, np.ones((3, 3), np.uint8), iterations=RIM) > 0
    if inside.sum() < 100:
        return np.zeros_like(gray)
    levels = blurred[inside].astype(float)
    return to_bytes((blurred - np.median(levels)) / (4 * levels.std() + 1e-6) * inside)


def main() -> None:
    """Print the metrics of a rule on test."""
    parser = parser_of(__doc__)
    parser.add_argument('rule', choices=['dark', 'bright'])
    parser.add_argument('folder', type=Path)
    options = parser.parse_args()
    rows = {'otsu': [], 'otsu, cleaned': []}
    for case in dataset.find_cases(options.folder, 'test'):
        if case.label:
            gray = np.asarray(dataset.read_image(case.image, channels=1))
            segmentation = otsu(255 - gray if options.rule == 'dark' else bright(gray))
            cleaned, label = clean(segmentation, 'large'), dataset.read_label(case.label)
            rows['otsu'].append(segmentation_metrics(segmentation, label))
            rows['otsu, cleaned'].append(segmentation_metrics(cleaned, label))
    for name, metrics in rows.items():
        print(name, {metric: round(value, 1) for metric, value in mean_metrics(metrics).items()})


if __name__ == '__main__':
    main()
