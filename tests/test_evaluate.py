"""--phase evaluate: masks of any origin against labels."""
import shutil

import numpy as np
import pytest
from PIL import Image

from helpers import ONLY_MASKS, assert_one_line_error, names, read_csv, read_json, run_here
from inference.metrics import DISTANCES, METRICS, paired_bootstrap
from nifti_files import store, store_case
from preparation import nifti

SHIFTS = {'a': 0, 'b': 3, 'c': 6, 'd': None}  # px, of a mask from its label; None: empty


def square(shift, shape=(30, 40), value=255):
    mask = np.zeros(shape, np.uint8)
    if shift is not None:
        mask[8:18, 5 + shift:15 + shift] = value
    return mask


def save(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Labels, and masks of two methods: the second's are 1 px nearer."""
    monkeypatch.chdir(tmp_path)
    for name, shift in SHIFTS.items():
        save(tmp_path / f'labels/{name}_segmentation.png', square(0))
        save(tmp_path / f'masks/{name}.png', square(shift))
        save(tmp_path / f'other/{name}_mask.png', square(shift and shift - 1, value=1))
    return tmp_path


def evaluate(*arguments):
    return run_here('--phase', 'evaluate', *arguments)


def test_masks_of_a_folder(folders):
    result = evaluate('--input', 'masks', '--labels', 'labels/')
    assert result.returncode == 0, result.stderr
    out = folders / 'results' / 'evaluate' / 'masks'
    assert names(out) == ['metrics.csv', 'metrics.json', 'report.html']
    rows = {row['name']: row for row in read_csv(out / 'metrics.csv')}
    assert {name: row['HD95'] for name, row in rows.items()} == {
        'a': '0.0', 'b': '3.0', 'c': '6.0', 'd': ''}
    assert float(rows['b']['JA']) == pytest.approx(100 * 7 / 13) and rows['d']['JA'] == '0.0'
    content = read_json(out / 'metrics.json')
    assert content['mean']['HD95'] == 3 and content['undefined']['HD95'] == 1
    low, high = content['interval']['JA']
    assert 0 <= low < content['mean']['JA'] < high <= 100
    assert [row['HD95'] for row in content['per_image']] == [0, 3, 6, None]
    assert '4 of 4 masks were scored' in result.stdout and 'HD95_mm' not in result.stdout
    assert '  percent, px\n' in result.stdout
    report = (out / 'report.html').read_text('utf-8')
    assert '95th percentile Hausdorff distance' in report and 'false positive' in report
    assert evaluate('--input', 'masks', '--labels', 'labels').returncode == 0  # replaces its own
    assert evaluate('--input', 'masks', '--labels', 'labels', '--output', 'x').returncode == 0
    assert_one_line_error(evaluate('--input', 'masks', '--labels', 'labels', '--output', 'x'),
                          'x/metrics.csv exists already', '--overwrite True')


def test_two_methods_are_compared_in_pairs(folders):
    (folders / 'other' / 'a_mask.png').unlink()
    save(folders / 'other' / 'e.png', square(0))
    result = evaluate('--input', 'masks', '--input', 'other', '--labels', 'labels')
    assert result.returncode == 0 and result.stdout.splitlines()[-3:-1] == [
        'not scored, since no mask in other belongs to it: labels/a_segmentation.png',
        'not scored, since no label in labels belongs to it: other/e.png']
    content = read_json(folders / 'results' / 'evaluate' / 'masks' / 'metrics.json')
    assert content['left_out'] == ['labels/a_segmentation.png', 'other/e.png']
    first, second = ({row['name']: row['JA'] for row in one['per_image']}
                     for one in (content, content['second']))
    assert list(second) == ['b', 'c', 'd']
    pairs = [first[name] for name in second], list(second.values())
    assert content['difference']['mean']['JA'] == pytest.approx(np.subtract(*pairs[::-1]).mean())
    assert content['difference']['interval']['JA'] == list(paired_bootstrap(*pairs))
    assert content['difference']['mean']['HD95'] == -1
    assert content['difference']['pairs'] == dict.fromkeys(METRICS, 3) | {'HD95': 2, 'ASSD': 2}
    assert '3 of 4 pairs: second minus first' in result.stdout
    rows = read_csv(folders / 'results' / 'evaluate' / 'masks' / 'metrics.csv')
    assert [row['input'] for row in rows] == ['masks'] * 4 + ['other'] * 3


def test_volumes_of_any_orientation_in_mm(tmp_path, monkeypatch):
    """Named as in BraTS or with .nii and .nii.gz; classes count as lesion."""
    monkeypatch.chdir(tmp_path)
    label = np.zeros((20, 24, 12), np.float32)
    label[5:11, 6:12, 4:8] = 4
    label[5:7, 6:8, 4:8] = 1
    for folder in ('labels', 'masks'):
        (tmp_path / folder / 'deep').mkdir(parents=True)
    store(tmp_path / 'labels' / 'deep' / 'p1_seg.nii', label, (2, 0, 1), (1, -1, 1))
    store(tmp_path / 'labels' / 'p2.nii.gz', label)
    store(tmp_path / 'masks' / 'deep' / 'p1_flair.nii.gz', np.roll(label > 0, 1, 2).astype('u1'))
    store(tmp_path / 'masks' / 'p2_pred.nii', label)
    store(tmp_path / 'masks' / 'p2_pred_probability.nii', label / 8)
    result = evaluate('--input', 'masks', '--labels', 'labels')
    assert result.returncode == 0, result.stderr
    out = tmp_path / 'results' / 'evaluate' / 'masks'
    one, other = read_json(out / 'metrics.json')['per_image']
    assert (one['name'], other['name']) == ('deep/p1', 'p2')
    assert (one['HD95'], one['HD95_mm']) == (1, 3)  # spacing 1, 2, 3
    assert '  percent, px, mm\n' in result.stdout
    assert one['JA'] == pytest.approx(60) and other['JA'] == 100 and other['ASSD_mm'] == 0
    assert evaluate('--input', 'masks/p2_pred.nii', '--labels', 'labels/p2.nii.gz').returncode == 0
    assert names(out.parent) == ['masks', 'p2_pred']


def test_what_cannot_be_compared_is_told_in_one_line_each(folders):
    save(folders / 'masks' / 'a.png', square(0, (20, 40)))
    save(folders / 'masks' / 'b.png', np.tile(np.arange(40, dtype=np.uint8) * 6, (30, 1)))
    (folders / 'masks' / 'c.png').write_text('broken')
    for name in 'efg':
        save(folders / 'labels' / f'{name}_segmentation.png', square(0))
    save(folders / 'labels' / 'd.png', square(0))
    soft = np.linspace(0, 1, 9 ** 3, dtype=np.float32).reshape(9, 9, 9)
    store(folders / 'labels' / 'v.nii', np.rint(soft))
    store(folders / 'masks' / 'v.nii', soft)
    store(folders / 'labels' / 'w.nii', np.ones((9, 9, 9), np.float32))
    save(folders / 'masks' / 'w.png', square(0))
    store(folders / 'labels' / 'x_flair.nii', np.arange(9 ** 3, dtype='i2').reshape(9, 9, 9))
    store(folders / 'masks' / 'x_flair.nii', np.ones((9, 9, 9), np.float32))
    result = evaluate('--input', 'masks', '--labels', 'labels')
    lines = result.stderr.splitlines()[-8:]
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    for line, parts in zip(sorted(line.strip() for line in lines[1:]), (
            ('labels/d_segmentation.png', 'the same image as d.png'),
            ('masks/a.png: 40×20 px, but a_segmentation.png is 40×30 px',),
            ('masks/b.png: a label has two values',), ('masks/c.png: cannot be read',),
            ('masks/v.nii', 'threshold a soft mask'),
            ('masks/w.png: an image, but w.nii is a volume',),
            ('masks/x_flair.nii: labels/x_flair.nii: 728 different values up to 728', '…_seg')),
            strict=True):
        assert all(part in line for part in parts), line
    assert '1 of 7 masks were scored' in result.stdout
    assert 'no mask in masks belongs to it: labels/e_segmentation.png, like 2 more' in result.stdout


@pytest.mark.parametrize('arguments, parts', (
    ('--labels labels', ['--input', 'needs it']), ('--input masks', ['--labels', 'needs it']),
    ('--input absent --labels labels', ['absent', 'no such file']),
    ('--input masks --labels masks', ['the same as --labels']),
    ('--input masks other masks --labels labels', ['3 of them']),
    ('--input masks --labels labels/a_segmentation.png', ['two files or two folders']),
    ('--input empty --labels labels', ['empty', 'holds no images', 'no volumes']),
    ('--input strange --labels labels', ['x.png', 'a_segmentation.png', 'x_mask.png']),
    ('--input masks --labels labels --output masks', ['into it'])))
def test_bad_input(folders, arguments, parts):
    (folders / 'empty').mkdir()
    save(folders / 'strange' / 'x.png', square(0))
    assert_one_line_error(evaluate(*arguments.split()), *parts)
    assert not (folders / 'results').exists()


def test_the_masks_of_a_test_have_the_metrics_that_it_wrote(stage_1, tmp_path):
    stage_1.done('--phase', 'test', *ONLY_MASKS)
    tested = stage_1.results / 'test1' / 'best'
    written = read_json(tested / 'metrics.json')
    assert set(written['per_image'][0]) == {'name', *METRICS, 'HD95', 'ASSD'} < {'name', *METRICS,
                                                                               *DISTANCES}
    result = evaluate('--input', tested / 'segmentation', '--labels',
                      stage_1.data / 'test' / 'labels', '--output', tmp_path / 'out')
    assert result.returncode == 0  # though one of three has no label
    content = read_json(tmp_path / 'out' / 'metrics.json')
    for name in ('mean', 'interval', 'undefined', 'per_image'):
        assert content[name] == written[name]
    stage_1.done('--phase', 'val', '--postprocess', 'otsu')
    assert {*METRICS, 'HD95', 'ASSD'} < set(read_json(
        stage_1.results / 'model1' / 'val.json')['best'])


def test_of_a_downloaded_case_of_brats_the_segmentation_is_the_label(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store_case(tmp_path / 'labels' / 'p1', 'p1', kinds=('_FLAIR', '_T1'))
    for kind in ('FLAIR', 'seg'):  # p2, as copies have it
        (tmp_path / 'labels' / 'p2' / f'p2_{kind}.nii').mkdir(parents=True)
        shutil.copy(tmp_path / 'labels' / 'p1' / f'p1_{kind}.nii.gz',
                    tmp_path / 'labels' / 'p2' / f'p2_{kind}.nii' / 'x.nii')
    lesion = nifti.read(tmp_path / 'labels/p1/p1_seg.nii.gz').values > 0
    for name in ('p1/p1_flair.nii.gz', 'p2/p2_flair.nii/x.nii.gz'):
        (tmp_path / 'masks' / name).parent.mkdir(parents=True)
        store(tmp_path / 'masks' / name, lesion.astype(np.uint8))
    for of_case, count in (('', 2), ('p1', 1)):
        result = evaluate('--input', f'masks/{of_case}', '--labels', f'labels/{of_case}',
                          '--output', f'out{count}')
        assert result.returncode == 0, result.stderr
        content = read_json(tmp_path / f'out{count}' / 'metrics.json')
        assert [row['JA'] for row in content['per_image']] == [100] * count
        assert f'left out: {count + 1} images beside their segmentation' in result.stdout
