"""What darkness alone gives on a test set of dermoscopy pictures: a baseline without training.

    python benchmarks/darkness.py dataset/phantom
"""
import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import dataset  # noqa: E402
from metrics import five_figures, mean_figures  # noqa: E402

cases = [case for case in dataset.find_cases(Path(sys.argv[1]), 'test') if case.label]
pairs = [(np.asarray(dataset.read_picture(case.picture, channels=1)),
          dataset.read_label(case.label)) for case in cases]
otsu = [five_figures(grey <= cv2.threshold(grey, 0, 255, cv2.THRESH_OTSU)[0], label)
        for grey, label in pairs]
print('Otsu of each grey picture:',
      {name: round(value, 1) for name, value in mean_figures(otsu).items()})
best, level = max((mean_figures([five_figures(grey < level, label) for grey, label in pairs])['JA'],
                   level) for level in range(40, 220, 5))
print(f'best single grey level, chosen on these labels: {level}, JA {best:.1f}')
