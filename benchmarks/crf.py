"""Time and memory of the dense CRF on one picture of 256 px: the first of the built-in test set,
and uniform noise, the worst case (every pixel has lattice points of its own).

    python benchmarks/crf.py
"""
import resource
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))
from crf import DenseCRF  # noqa: E402
from postprocess import EXPONENTS  # noqa: E402

rng = np.random.default_rng(0)
phantom = min((PROJECT / 'dataset' / 'phantom' / 'testA').glob('*.png'))
for name, image in (('phantom', np.asarray(Image.open(phantom).convert('RGB'))),
                    ('noise', rng.integers(0, 256, (256, 256, 3), dtype=np.uint8))):
    mask = rng.uniform(0, 1, image.shape[:2]).astype(np.float32)
    times = {'one t': [], 't 1 to 8': []}
    for _ in range(7):
        for label, exponents in (('one t', (1,)), ('t 1 to 8', EXPONENTS)):
            start = time.perf_counter()
            DenseCRF(image).infer(mask, exponents)
            times[label].append(time.perf_counter() - start)
    print(name, {label: f'{np.median(values):.2f} s' for label, values in times.items()},
          f'peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB')
