"""How long report.html takes to write and to open: python benchmarks/report_speed.py [IMAGES]

Built-in images of 256 px with all eight kinds each. Opens the report in headless Chromium (needs
selenium, chromium and chromedriver).
"""
import argparse
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from inference.metrics import METRIC_INFO, segmentation_metrics, summarize  # noqa: E402
from preparation import phantom  # noqa: E402
from reporting import report, visualize  # noqa: E402

DRAWN = 60  # images; more of them are these again under other names


def entries(count: int) -> Iterator[report.Entry]:
    cases = [phantom.draw_skin(np.random.default_rng(number), 256, True) for number in range(DRAWN)]
    for number in range(count):
        image, label = cases[number % DRAWN]
        soft = cv2.GaussianBlur(label, (0, 0), 6)
        segmentation = np.roll(soft, number % 23, 1) > 127
        heatmap = visualize.from_heatmap(cv2.GaussianBlur(label, (0, 0), 12))
        yield report.Entry(
            f'image_{number:05}',
            {'image': image, 'heatmap': heatmap, 'stage1_mask': soft, 'mask': soft,
             'segmentation': segmentation.astype(np.uint8) * 255, 'label': label,
             'translation': cv2.medianBlur(image, 15),
             'overlay': visualize.overlay(image, segmentation, label > 0)},
            segmentation_metrics(segmentation, label > 0))


def open_in_browser(path: Path) -> tuple[float, float]:
    """Seconds until the page is complete, and to sort it."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which('chromium')
    for flag in ('headless=new', 'no-sandbox', 'disable-gpu', 'window-size=1200,900'):
        options.add_argument(f'--{flag}')
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which('chromedriver')))
    try:
        driver.get(path.as_uri())
        complete = driver.execute_script(
            "return performance.getEntriesByType('navigation')[0].domComplete")
        to_sort = driver.execute_script(
            "const start = performance.now(), order = document.getElementById('order');"
            "order.value = 'JA'; order.dispatchEvent(new Event('change'));"
            "document.body.getBoundingClientRect(); return performance.now() - start")
        return complete / 1000, to_sort / 1000
    finally:
        driver.quit()


def main() -> None:
    """Print time, size and memory of a report."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', nargs='?', type=int, default=1000)
    count = parser.parse_args().images
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'report.html'
        start = time.perf_counter()
        report.write(path, 'speed', {}, entries(count), METRIC_INFO, summarize)
        taken = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f'{count} images: written in {taken:.1f} s (drawing them included), '
              f'{path.stat().st_size / 1e6:.1f} MB, peak memory {peak:.2f} GB', flush=True)
        if shutil.which('chromium') and shutil.which('chromedriver'):
            print('opened in {:.2f} s, sorted in {:.2f} s'.format(*open_in_browser(path)))


if __name__ == '__main__':
    main()
