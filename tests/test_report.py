"""The report: what it says, that it needs nothing else, and how it behaves in a browser."""
import re
import shutil

import numpy as np
import pytest

import report
from metrics import FIGURES

HOSTILE = '</script><img src=x onerror="document.title=1"> & \'"'
NAMES = ('b_10', 'b_9', HOSTILE, 'ü')
JA = (80.0, 20.0, 50.0, None)


def entries(names=NAMES, ja=JA):
    for number, (name, value) in enumerate(zip(names, ja)):
        rng = np.random.default_rng(number)
        image = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
        yield report.Entry(name, {'image': image, 'mask': image[..., 0], 'overlay': image},
                           value if value is None else dict.fromkeys(FIGURES, 90.0) | {'JA': value})


@pytest.fixture
def page(tmp_path):
    path = tmp_path / 'report.html'
    report.write(path, f'Test of {HOSTILE}', {'checkpoint': HOSTILE}, entries())
    return path


def test_needs_nothing_beside_it(page):
    text = page.read_text(encoding='utf-8')
    frame = re.sub('<script type="application/json".*?</script>', '', text, flags=re.DOTALL)
    assert not re.search(r'(https?:)?//\w+\.\w', frame)  # no address
    assert not re.findall(r'<(?:script|link)[^>]*(?:src|href)="(?!data:)', frame)
    assert [path.name for path in page.parent.iterdir()] == ['report.html']
    assert '{{' not in frame  # every placeholder is filled


def test_names_are_text(page):
    text = page.read_text(encoding='utf-8')
    assert '<img src=x' not in text and text.count('</script>') == 2
    assert text.count('&lt;/script&gt;') == 3  # title, heading, fact


def test_figures_of_those_with_a_label(page):
    text = page.read_text(encoding='utf-8')
    assert 'over 3 pictures with a label' in text
    rows = dict(re.findall(r'<th scope="row">(\w+)</th><td>([\d.]+)</td>', text))
    assert rows == {'mean': '50.0', 'median': '50.0', 'lowest': '20.0', 'highest': '80.0'}
    histogram = re.search(r'<svg[^>]*desc_JA.*?</svg>', text, re.DOTALL)[0]
    assert '3 pictures in 20 bins from 0 to 100 percent; mean 50.0, median 50.0' in histogram
    bars = re.findall(r'<rect x="([\d.]+)"', histogram)
    assert len(bars) == 3 and float(bars[2]) - float(bars[1]) == float(bars[1]) - float(bars[0])


def test_without_labels(tmp_path):
    report.write(tmp_path / 'report.html', 'x', {}, entries(ja=[None] * 4))
    text = (tmp_path / 'report.html').read_text(encoding='utf-8')
    assert 'No picture has a label' in text and '<table>' not in text


def test_a_broken_report_leaves_the_one_before(page):
    before = page.read_bytes()

    def broken():
        yield from entries()
        raise OSError('disk')
    with pytest.raises(OSError, match='disk'):
        report.write(page, 'x', {}, broken())
    assert page.read_bytes() == before and len(list(page.parent.iterdir())) == 1


def test_many_pictures_are_embedded_smaller(tmp_path):
    def sizes(count):
        image = np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8)
        path = tmp_path / 'report.html'
        report.write(path, 'x', {}, (report.Entry(str(i), {'image': image}) for i in range(count)))
        return path.stat().st_size / count
    assert sizes(report.FEW + 1) < 0.7 * sizes(10)


# ------------------------------------------------------------------------------- in a browser


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
    browser.set_window_size(1200, 900)
    browser.get(page.as_uri())
    yield browser
    assert browser.get_log('browser') == []  # no errors, no requests that failed


def texts(browser, selector):
    return [one.text for one in browser.find_elements('css selector', selector)]


def order(browser):
    return browser.execute_script(
        "return [...document.querySelectorAll('#cards li:not([hidden]) h3')]"
        ".map(one => one.firstChild.textContent)")


def choose(browser, value):
    browser.execute_script("const one = document.getElementById('order'); one.value = arguments[0];"
                           "one.dispatchEvent(new Event('change'))", value)


def press(browser, *keys):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    for key in keys:
        ActionChains(browser).send_keys(getattr(Keys, key)).perform()


def large(browser):
    """What the enlarged view shows: name, which picture; None while it is closed."""
    return browser.execute_script(
        "return document.getElementById('large').open ? [document.getElementById('large_name')"
        ".textContent, document.querySelector('#large_kinds [aria-pressed=true]').lastChild.textContent] : null")


def test_sorted_and_filtered(opened):
    assert order(opened) == [HOSTILE, 'b_9', 'b_10', 'ü']  # numbers count as numbers
    choose(opened, 'JA')
    assert order(opened) == ['b_9', HOSTILE, 'b_10', 'ü']
    choose(opened, 'JA down')
    assert order(opened) == ['b_10', HOSTILE, 'b_9', 'ü']  # without a label: last both ways
    opened.find_element('id', 'filter').send_keys('B_')
    assert order(opened) == ['b_10', 'b_9']
    assert texts(opened, '#count') == ['2 of 4 shown']
    assert opened.title == f'Test of {HOSTILE}'  # nothing in a name has run


def test_pictures_have_words(opened):
    said = opened.execute_script(
        "return [...document.querySelectorAll('#cards img')].map(one => one.alt)")
    assert len(said) == 12 and 'mask of b_9, JA 20.0 percent' in said and 'image of ü, no label' in said
    assert opened.execute_script(
        "return [...document.images].filter(one => one.src).every(one => one.naturalWidth == 60)")
    assert opened.find_element('css selector', 'html').get_attribute('lang') == 'en'


def test_enlarged_by_mouse(opened):
    assert large(opened) is None
    opened.find_element('css selector', '#cards li:nth-child(2) figure:nth-child(2) button').click()
    assert large(opened) == ['b_9', 'mask']
    assert 'JA 20.0 %' in opened.find_element('id', 'large_figures').text
    opened.find_element('id', 'next').click()
    assert large(opened) == ['b_10', 'mask']
    opened.find_element('id', 'previous').click()
    opened.find_element('css selector', '#large_kinds button:nth-child(3)').click()
    assert large(opened) == ['b_9', 'overlay']
    press(opened, 'ARROW_RIGHT')  # the focus has stayed in the dialogue
    assert large(opened) == ['b_10', 'overlay']
    opened.find_element('id', 'close').click()
    assert large(opened) is None


def test_enlarged_by_keyboard(opened):
    choose(opened, 'JA')
    button = opened.find_element('css selector', '#cards li:nth-child(1) button')
    opened.execute_script('arguments[0].focus()', button)
    press(opened, 'ENTER')
    assert large(opened) == ['b_9', 'image']
    press(opened, 'ARROW_RIGHT', 'ARROW_RIGHT')
    assert large(opened) == ['b_10', 'image']
    press(opened, 'ARROW_RIGHT', 'ARROW_RIGHT')  # the last one stays
    assert large(opened) == ['ü', 'image']
    press(opened, 'ARROW_DOWN')
    assert large(opened) == ['ü', 'mask']
    press(opened, 'ARROW_LEFT', 'ARROW_UP', 'ARROW_UP')
    assert large(opened) == ['b_10', 'overlay']
    press(opened, 'ESCAPE')
    assert large(opened) is None
    assert opened.switch_to.active_element == button


def test_narrow_screen(opened):
    opened.execute_cdp_cmd('Emulation.setDeviceMetricsOverride',
                           {'width': 375, 'height': 700, 'deviceScaleFactor': 2, 'mobile': True})
    try:
        assert opened.execute_script('return document.documentElement.scrollWidth') <= 375
        heights = opened.execute_script(
            "return [...document.querySelectorAll('select, input, #cards button')]"
            ".map(one => one.getBoundingClientRect().height)")
        assert min(heights) >= 44
    finally:
        opened.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})
