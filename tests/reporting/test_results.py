"""The folder of a test, the report of val, and the printed table."""
import csv
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dataset import Case
from helpers import disc
from inference.metrics import METRIC_INFO, METRICS, segmentation_metrics, summarize
from reporting import results

SIZE = 24, 32
LESION = disc(SIZE, (12, 16), 6)
USED = {'dataset': 'Tiny', 'stage': 1, 'postprocess': 'otsu', 'crf_t': None}


@pytest.fixture
def cases(tmp_path):
    """Two cases; the first alone has a label, in which lesion is 1."""
    pixels = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    for name in ('a', 'b'):
        Image.fromarray(pixels).save(tmp_path / f'{name}.png')
    label = tmp_path / 'a_segmentation.png'
    Image.fromarray(LESION.astype(np.uint8)).save(label)
    return [Case('a', tmp_path / 'a.png', label), Case('b', tmp_path / 'b.png')]


def write_test(folder, cases, labeled=True):
    """What a test writes, with a soft mask that is the lesion itself."""
    result = results.ResultFolder(folder)
    output = SimpleNamespace(mask=LESION.astype(np.uint8) * 255, heatmap=LESION * 2.0,
                             translation=np.zeros((*SIZE, 3), np.uint8))
    for case in cases:
        result.write_network_output(case, output, None)
        result.write_segmentation(case, LESION, np.asarray(Image.open(case.image)),
                                  LESION if case.label else None)
    rows = [{'name': 'a', **segmentation_metrics(LESION, LESION)}] if labeled else []
    result.write_overview(cases)
    result.write_metrics(USED, rows, summarize(rows).get('mean', {}), METRICS)
    result.write_report(USED, cases, rows, METRIC_INFO, summarize)
    return result


def test_a_test_replaces_results_and_leaves_other_files(tmp_path, cases):
    folder = tmp_path / 'test1' / 'best'
    for kind in ('stage1_mask', 'translation_B'):  # of an earlier test
        (folder / kind).mkdir(parents=True)
    (folder / 'notes.txt').write_text('mine')
    result = write_test(folder, cases)
    assert sorted(path.name for path in folder.iterdir()) == ['notes.txt', 'stage1_mask',
                                                              'translation_B']  # until it is whole
    result.finish()
    assert sorted(path.name for path in folder.iterdir()) == [
        'heatmap', 'mask', 'metrics.csv', 'metrics.json', 'notes.txt', 'overlay', 'overview.png',
        'report.html', 'segmentation', 'translation']
    assert [path.name for path in folder.parent.iterdir()] == ['best']
    kinds = re.search(r'"kinds": (\[.*?\])', (folder / 'report.html').read_text('utf-8'))[1]
    assert [kind['name'] for kind in json.loads(kinds)] == [
        'image', 'heatmap', 'soft mask', 'segmentation', 'label', 'translation', 'overlay']
    overview = Image.open(folder / 'overview.png')
    assert overview.size == (100 + 2 * 128, 7 * 128)
    assert overview.getpixel((300, 4 * 128 + 64)) == (127,) * 3  # b has no label


@pytest.mark.parametrize('labeled', [True, False])
def test_metrics_files(tmp_path, cases, labeled):
    folder = tmp_path / 'test1' / 'best'
    write_test(folder, cases, labeled).finish()
    with open(folder / 'metrics.csv', newline='') as file:
        header, *rows = csv.reader(file)
    assert header == ['name', *METRICS] and [row[0] for row in rows] == ['a'] * labeled
    content = json.loads((folder / 'metrics.json').read_text())
    assert content.items() >= USED.items() and content['images'] == labeled
    assert content['mean'] == (dict.fromkeys(METRICS, 100.0) if labeled else {})
    assert [row['name'] for row in content['per_image']] == ['a'] * labeled


def test_of_very_many_cases_the_report_shows_the_worst(tmp_path, cases, monkeypatch):
    monkeypatch.setattr(results, 'MAX_IN_REPORT', 1)
    folder = tmp_path / 'test1' / 'best'
    write_test(folder, cases[::-1]).finish()
    text = (folder / 'report.html').read_text('utf-8')
    assert '1 of 2 images, those of lowest JA first' in text
    assert '"name": "a"' in text and '"name": "b"' not in text
    assert '<dt>postprocess</dt><dd>otsu</dd>' in text and 'crf t' not in text


def test_the_report_of_val(tmp_path, cases):
    images = []

    def segment(mask, image):
        images.append(image)
        return mask > 127

    results.write_val_report(
        tmp_path / 'report.html', 'Tiny', {'checkpoint': 'best.pt'}, cases[:1],
        [LESION.astype(np.uint8) * 255], METRIC_INFO, segment=segment,
        compute_metrics=segmentation_metrics, summarize=summarize)
    text = (tmp_path / 'report.html').read_text('utf-8')
    assert '<title>Tiny: val</title>' in text and 'best.pt' in text
    assert '"JA": 100.0' in text and images[0].shape == (*SIZE, 3)


def test_table():
    rows = [{'name': str(value), **dict.fromkeys(METRICS, value)} for value in (10.0, 20.0, 60.0)]
    lines = results.table(summarize(rows), 3, 4).splitlines()
    assert lines[0].split() == ['3', 'of', '4', 'images', 'have', 'labels', *METRICS, 'percent']
    assert [line.split()[:2] for line in lines[1:]] == [
        ['mean', '30.0'], ['median', '20.0'], ['lowest', '10.0'], ['highest', '60.0']]
    assert len({line.index(line.split()[1]) + len('30.0') for line in lines[1:]}) == 1
