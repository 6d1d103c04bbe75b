"""--source_format folders: disease and normal images, perhaps labels, or a whole data set."""
import numpy as np
from PIL import Image

from helpers import draw_images, draw_labels, read_pixels
from prepared import description, snapshot, stems


def test_two_folders_with_and_without_labels(program, folders):
    program.done('--source', *folders, '--source_format', 'folders', '--split', 0.5, 0.25, 0.25)
    data = program.data
    train, val, test = (stems(data / name) for name in ('trainA', 'val/images', 'testA'))
    assert (len(train), len(val), len(test)) == (4, 2, 2)
    assert train | val | test == {f'p{i}' for i in range(6)} | {'more_p0', 'more_p1'}
    assert val | test <= {'p0', 'p1', 'p2', 'p3', 'more_p0'}  # those with labels
    for split, names in (('val', val), ('test', test)):
        assert stems(data / split / 'labels') == {f'{name}_segmentation' for name in names}
    assert len(stems(data / 'trainB')) + len(stems(data / 'testB')) == 8 and stems(data / 'testB')
    written = next(data.rglob('more_p0.png'))  # of 64×64 px already: its pixels stay
    np.testing.assert_array_equal(read_pixels(written),
                                  read_pixels(folders[0] / 'more' / 'p0.jpg'))
    # and without labels
    program.done('--source', *folders[:2], '--source_format', 'folders', '--overwrite', True)
    assert len(stems(data / 'trainA')) == 7 and len(stems(data / 'testA')) == 1
    assert not (data / 'val').exists()


def test_names_that_macos_wrote(program, tmp_path):
    """There ä is two characters, here one."""
    draw_images(tmp_path / 'ill', ['f\u00e4ll.png', 'other.png'], bright_square=True)
    draw_images(tmp_path / 'well', ['n.png', 'm.png'])
    draw_labels(tmp_path / 'labels', ['fa\u0308ll'])
    program.done('--source', tmp_path / 'ill', tmp_path / 'well', tmp_path / 'labels',
                 '--source_format', 'folders', '--split', 1, 0, 1)
    assert stems(program.data / 'test' / 'labels') == {'f\u00e4ll_segmentation'}
    assert stems(program.data / 'testA') == {'f\u00e4ll'}


def test_a_prepared_data_set_stays_as_it_is(data_root, program):
    """Prepared at the size of its images, all pixels, names and splits are the same, and so all
    samples that training and test read."""
    tiny = data_root / 'Tiny'
    for path in tiny.rglob('*.png'):
        Image.open(path).resize((64, 64), 0).save(path)
    program.done('--source', tiny, '--source_format', 'folders')
    assert snapshot(program.data).keys() == {'prepare.json', *snapshot(tiny)}
    for name in snapshot(tiny):
        np.testing.assert_array_equal(read_pixels(program.data / name), read_pixels(tiny / name))


def test_broken_images_are_left_out(program, folders):
    (folders[0] / 'p5.png').write_bytes(b'no image')
    (folders[1] / 'q1.tif').write_bytes(b'')
    draw_labels(folders[2], ['p2', 'p9'], (20, 20))
    result = program.run('--source', *folders, '--source_format', 'folders')
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    for part in ('p5.png: cannot be read', 'q1.tif: cannot be read',
                 'p2_segmentation.png: 20×20 px, but',
                 'p9_segmentation.png: label without an image'):
        assert part in result.stderr
    assert len(description(program.data)['left_out']) == 4
    assert 'p5' not in stems(program.data / 'trainA')
