"""Time and memory of the dense CRF on one image of 256 px: the first of the built-in test set,
and uniform noise, the worst case (every pixel has lattice points of its own).

    python benchmarks/crf.py
"""
import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from inference.crf import DenseCRF  # noqa: E402
from inference.postprocess import EXPONENTS  # noqa: E402
from preparation import phantom  # noqa: E402

ROUNDS = 7


def seconds(image: np.ndarray, mask: np.ndarray, exponents: tuple[int, ...]) -> float:
    """Median time of a CRF, lattices included."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        DenseCRF(image).infer(mask, exponents)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    """Print the times on both images, with one exponent and with all that val tries."""
    argparse.ArgumentParser(description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    folder = PROJECT / 'dataset' / 'phantom'
    if not folder.is_dir():
        phantom.write_phantom(folder)
    rng = np.random.default_rng(0)
    images = {'phantom': np.asarray(Image.open(min((folder / 'testA').glob('*.png')))
                                    .convert('RGB')),
              'noise': rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)}
    for name, image in images.items():
        mask = rng.uniform(0, 1, image.shape[:2]).astype(np.float32)
        one, all_eight = seconds(image, mask, (1,)), seconds(image, mask, EXPONENTS)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f'{name}: one t {one:.2f} s, t 1 to 8 {all_eight:.2f} s, peak memory {peak:.0f} MB')


if __name__ == '__main__':
    main()
