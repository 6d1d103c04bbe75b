"""What the start of training says of senseless data."""
import numpy as np
import pytest
from PIL import Image

from config import resolve
from dataset import ImageStore, checked_training_data, training_images


@pytest.fixture
def data(tmp_path):
    """Twenty images of noise in either folder."""
    for number, domain in enumerate('AB'):
        folder = tmp_path / 'Made' / f'train{domain}'
        folder.mkdir(parents=True)
        for index in range(20):
            pixels = np.random.default_rng((number, index)).integers(0, 255, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f'{domain}{index}.png')
    return tmp_path / 'Made'


def said(data, capsys, **flags) -> str:
    config = resolve({'dataset': data.name, 'data_root': str(data.parent), 'stage': 0,
                      'img_size': 32, **flags})
    checked_training_data(config, ImageStore(config, config.size))
    return capsys.readouterr().out


def change(data, change_image) -> None:
    """Every normal image becomes change_image(it)."""
    for path in training_images(data)['B']:
        change_image(Image.open(path)).save(path)


def test_nothing_is_said_of_sound_data(data, capsys):
    assert not said(data, capsys)


@pytest.mark.parametrize('change_image, clue, flag', (
    (lambda image: image.resize((48, 48), 0), 'image size', '--blur_jitter True'),
    (lambda image: image.resize((32, 24), 0), 'width by height', '--rotate 180'),
    (lambda image: image.point(lambda value: value // 2), 'mean brightness',
     '--contrast_jitter True'),
    (lambda image: image.resize((8, 8)).resize((32, 32)), 'sharpness', '--blur_jitter True'),
    (lambda image: image.convert('L'), 'color saturation', '--img_ch 1')))
def test_looks_that_distinguish_the_folders_are_named_with_a_flag(data, capsys, change_image, clue,
                                                                  flag):
    change(data, change_image)
    lines = said(data, capsys).splitlines()
    assert any(line.startswith(f'{clue} alone separates trainA from trainB (AUC 1.00')
               and f'{flag} helps' in line for line in lines), lines


def test_formats_equal_images_and_few_of_them(data, capsys):
    for path in training_images(data)['B'][:19]:
        Image.open(path).save(path.with_suffix('.bmp'))
        path.unlink()
    assert 'file format alone separates' in (text := said(data, capsys, blur_jitter=True))
    assert '--blur_jitter True, which is set, helps' in text
    Image.open(data / 'trainA' / 'A3.png').save(data / 'trainB' / 'B0.bmp')  # of the same pixels
    (data / 'trainA' / 'A7.png').unlink()
    text = said(data, capsys)
    assert '1 image is in both folders, as trainA/A3.png and trainB/B0.bmp' in text
    assert 'only 19 images in trainA (disease)' in text and 'in trainB' not in text
    assert not said(data, capsys, stage=2)  # its teacher's training said so
