"""The report: what it says, that it needs nothing else, and how it behaves in a browser."""
import re
import shutil
from html import escape

import numpy as np
import pytest

from helpers import names
from inference.metrics import METRIC_INFO, METRICS, summarize
from reporting import report

HOSTILE = '</script><img src=x onerror="document.title=1"> & \'"'
NAMES = ('b_10', 'b_9', HOSTILE, 'ü')


def entries(ja=(80.0, 20.0, 50.0, None)):
    for number, (name, value) in enumerate(zip(NAMES, ja, strict=True)):
        image = np.random.default_rng(number).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        yield report.Entry(name, {'image': image, 'mask': image[..., 0], 'overlay': image},
                           value and {**dict.fromkeys(METRICS, 90.0), 'JA': value})


def write(path, title='x', facts=(), entries=()):
    report.write(path, title, dict(facts), entries, METRIC_INFO, summarize)


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp('page') / 'report.html'
    write(path, f'Test of {HOSTILE}', {'checkpoint': HOSTILE}, entries())
    return path


def test_needs_nothing_beside_it_and_names_are_text(page):
    text = page.read_text(encoding='utf-8')
    frame = re.sub('<script type="application/json".*?</script>', '', text, flags=re.DOTALL)
    assert not re.search(r'(https?:)?//\w+\.\w', frame)  # no address
    assert not re.findall(r'<(?:script|link)[^>]*(?:src|href)="(?!data:)', frame)
    assert names(page.parent) == ['report.html']
    assert '{{' not in frame  # every placeholder is filled
    assert '<img src=x' not in text and text.count('</script>') == 2
    assert text.count('&lt;/script&gt;') == 4  # title, heading, fact, overview


def test_metrics_of_those_with_a_label(page):
    text = page.read_text(encoding='utf-8')
    assert 'Metrics over 3 images with a label, in percent' in text
    rows = dict(re.findall(r'<th scope="row">(\w+)</th><td>([\d.]+)</td>', text))
    assert rows == {'mean': '50.0', 'median': '50.0', 'lowest': '20.0', 'highest': '80.0'}
    histogram = re.search(r'<svg[^>]*desc_JA.*?</svg>', text, re.DOTALL)[0]
    assert '3 images in 20 bins from 0 to 100 percent; mean 50.0, median 50.0' in histogram
    bars = re.findall(r'<rect x="([\d.]+)"', histogram)
    assert len(bars) == 3 and float(bars[2]) - float(bars[1]) == float(bars[1]) - float(bars[0])


def test_the_overview_goes_from_the_worst_to_the_best(page):
    cases = [(f'{ja}', ja) for ja in range(90, 0, -3)]
    chosen = report.across_ranking(cases, lambda case: case[1])
    assert len(chosen) == report.OVERVIEW_CASES and chosen[0][1] == 3 and chosen[-1][1] == 90
    assert report.across_ranking([('a', None), ('b', 0.0)], lambda case: case[1]) == [
        ('b', 0.0), ('a', None)]
    assert f'alt="Overview of b_9, {escape(HOSTILE)}, b_10, ü"' in page.read_text('utf-8')


def test_without_labels(tmp_path):
    path = tmp_path / 'report.html'
    write(path, entries=entries(ja=[None] * 4))
    text = path.read_text(encoding='utf-8')
    assert 'No image has a label' in text and '<table>' not in text


def test_a_broken_report_leaves_the_one_before(page):
    before = page.read_bytes()

    def broken():
        yield from entries()
        raise OSError('disk')
    with pytest.raises(OSError, match='disk'):
        write(page, entries=broken())
    assert page.read_bytes() == before and names(page.parent) == ['report.html']


def test_many_images_are_embedded_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(report, 'MAX_LARGE_ENTRIES', 20)
    image = np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8)
    path, sizes = tmp_path / 'report.html', []
    for count in (20, 21):
        write(path, entries=[report.Entry(str(i), {'image': image}) for i in range(count)])
        sizes.append(path.stat().st_size / count)
    assert sizes[1] < 0.7 * sizes[0]


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    webdriver = pytest.importorskip('selenium.webdriver')
    if not (shutil.which('chromium') and shutil.which('chromedriver')):
        pytest.skip('needs chromium and chromedriver')
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which('chromium')
    for flag in ('headless=new', 'no-sandbox', 'disable-gpu', 'disable-quic', 'no-first-run',
                 'disable-background-networking', 'disable-component-update', 'disable-sync',
                 f'user-data-dir={tmp_path_factory.mktemp("browser")}', 'window-size=1200,900'):
        options.add_argument(f'--{flag}')
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which('chromedriver')))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, page):
    browser.get(page.as_uri())
    yield browser
    assert browser.get_log('browser') == []  # no errors, no requests that failed


def order(browser):
    return browser.execute_script(
        "return [...document.querySelectorAll('#cards li:not([hidden]) h3')]"
        ".map(heading => heading.firstChild.textContent)")


def press(browser, *keys):
    from selenium.webdriver import ActionChains, Keys
    ActionChains(browser).send_keys(*(getattr(Keys, key) for key in keys)).perform()


def large(browser):
    """Name and kind of the image that the enlarged view shows; None while it is closed."""
    return browser.execute_script(
        "return document.getElementById('large').open ? ["
        "document.getElementById('large_name').textContent, "
        "document.querySelector('#large_kinds [aria-pressed=true]').lastChild.textContent] : null")


def test_sorted_and_filtered(opened):
    assert order(opened) == ['b_9', HOSTILE, 'b_10', 'ü']  # the worst first
    opened.find_element('css selector', '#order [value="name"]').click()
    assert order(opened) == [HOSTILE, 'b_9', 'b_10', 'ü']  # numbers count as numbers
    opened.find_element('css selector', '#order [value="JA down"]').click()
    assert order(opened) == ['b_10', HOSTILE, 'b_9', 'ü']  # without a label: last both ways
    opened.find_element('id', 'filter').send_keys('B_')
    assert order(opened) == ['b_10', 'b_9']
    assert opened.find_element('id', 'count').text == '2 of 4 shown'
    assert opened.title == f'Test of {HOSTILE}'  # nothing in a name has run


def test_images_have_texts(opened):
    alternatives = opened.execute_script(
        "return [...document.querySelectorAll('#cards img')].map(image => image.alt)")
    assert len(alternatives) == 12
    assert {'soft mask of b_9, JA 20.0 percent', 'image of ü, no label'} < set(alternatives)
    assert opened.execute_script("return [...document.images].filter(image => image.src)"
                                 ".every(image => image.naturalWidth == 60"
                                 " || image.className == 'overview' && image.complete)")
    assert opened.find_element('css selector', 'html').get_attribute('lang') == 'en'


def test_enlarged_by_mouse(opened):
    assert large(opened) is None
    for selector, shown in (
            ('#cards li:nth-child(1) figure:nth-child(2) button', ['b_9', 'soft mask']),
            ('#next', [HOSTILE, 'soft mask']), ('#previous', ['b_9', 'soft mask']),
            ('#large_kinds button:nth-child(3)', ['b_9', 'overlay'])):
        opened.find_element('css selector', selector).click()
        assert large(opened) == shown
    assert 'JA 20.0 %' in opened.find_element('id', 'large_metrics').text
    press(opened, 'RIGHT')  # the focus stayed in the dialog
    assert large(opened) == [HOSTILE, 'overlay']
    opened.find_element('id', 'close').click()
    assert large(opened) is None


def test_enlarged_by_keyboard(opened):
    button = opened.find_element('css selector', '#cards li:nth-child(1) button')
    opened.execute_script('arguments[0].focus()', button)
    for keys, shown in ((['ENTER'], ['b_9', 'image']), (['RIGHT', 'RIGHT'], ['b_10', 'image']),
                        (['RIGHT', 'RIGHT'], ['ü', 'image']),  # the last one stays
                        (['DOWN'], ['ü', 'soft mask']),
                        (['LEFT', 'UP', 'UP'], ['b_10', 'overlay']), (['ESCAPE'], None)):
        press(opened, *keys)
        assert large(opened) == shown
    assert opened.switch_to.active_element == button


def test_figures_are_in_one_row_at_1100_px(opened):
    opened.execute_cdp_cmd('Emulation.setDeviceMetricsOverride',
                           {'width': 1100, 'height': 700, 'deviceScaleFactor': 1, 'mobile': False})
    try:
        for figures in ('.histograms figure', '#cards li:first-child figure'):
            tops = opened.execute_script(
                'return [...document.querySelectorAll(arguments[0])]'
                '.map(figure => figure.getBoundingClientRect().top)', figures)
            assert len(tops) >= 3 and len(set(tops)) == 1, figures
        assert opened.execute_script('return document.documentElement.scrollWidth') <= 1100
    finally:
        opened.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})


def test_narrow_screen(opened):
    opened.execute_cdp_cmd('Emulation.setDeviceMetricsOverride',
                           {'width': 375, 'height': 700, 'deviceScaleFactor': 2, 'mobile': True})
    try:
        assert opened.execute_script('return document.documentElement.scrollWidth') <= 375
        heights = opened.execute_script(
            "return [...document.querySelectorAll('select, input, #cards button')]"
            ".map(element => element.getBoundingClientRect().height)")
        assert min(heights) >= 44
    finally:
        opened.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})
