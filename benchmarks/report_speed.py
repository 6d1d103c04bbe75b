"""How long report.html takes to write and to open: python benchmarks/report_speed.py [PICTURES]

Built-in pictures of 256 px with all eight kinds each. Opens it in headless Chromium (needs selenium,
chromium and chromedriver).
"""
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import phantom  # noqa: E402
import pictures  # noqa: E402
import report  # noqa: E402
from metrics import five_figures  # noqa: E402

DRAWN = 60  # pictures; more of them are these again under other names


def entries(count):
    cases = [phantom.draw_skin(np.random.default_rng(number), 256, True) for number in range(DRAWN)]
    for number in range(count):
        image, label = cases[number % DRAWN]
        soft = cv2.GaussianBlur(label, (0, 0), 6)
        found = np.roll(soft, number % 23, 1) > 127
        segmentation = found.astype(np.uint8) * 255
        yield report.Entry(
            f'picture_{number:05}',
            {'image': image, 'heatmap': pictures.from_heatmap(cv2.GaussianBlur(label, (0, 0), 12)),
             'stage_1_mask': soft, 'mask': soft, 'segmentation': segmentation, 'label': label,
             'translated': cv2.medianBlur(image, 15),
             'overlay': pictures.outlines(image, found, label > 0)},
            five_figures(found, label > 0))


def open_in_browser(path):
    """Seconds until the page is there, and to sort it."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which('chromium')
    for flag in ('headless=new', 'no-sandbox', 'disable-gpu', 'window-size=1200,900'):
        options.add_argument(f'--{flag}')
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which('chromedriver')))
    try:
        driver.get(path.as_uri())
        there = driver.execute_script(
            "return performance.getEntriesByType('navigation')[0].domComplete")
        to_sort = driver.execute_script(
            "const start = performance.now(), order = document.getElementById('order');"
            "order.value = 'JA'; order.dispatchEvent(new Event('change'));"
            "document.body.getBoundingClientRect(); return performance.now() - start")
        return there / 1000, to_sort / 1000
    finally:
        driver.quit()


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'report.html'
        start = time.perf_counter()
        report.write(path, 'speed', {}, entries(count))
        took = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f'{count} pictures: written in {took:.1f} s (drawing them included), '
              f'{path.stat().st_size / 1e6:.1f} MB, peak memory {peak:.2f} GB', flush=True)
        if shutil.which('chromium') and shutil.which('chromedriver'):
            print('opened in {:.2f} s, sorted in {:.2f} s'.format(*open_in_browser(path)))


if __name__ == '__main__':
    main()
