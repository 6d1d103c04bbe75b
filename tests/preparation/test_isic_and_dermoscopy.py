"""--source_format isic: dermoscopy images, and crops of plain skin as normal ones."""
import itertools

import cv2
import numpy as np
import pytest
from PIL import Image

from helpers import assert_one_line_error, disc, read_pixels
from preparation import dermoscopy, phantom, vignette, writer
from prepared import description, stems

ISIC = ['--source_format', 'isic', '--source']
SIZE = HEIGHT, WIDTH = 192, 256
LESION = disc(SIZE, (96, 128), 40)


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    """An archive like those of 2016 to 2018, for reading alone: 12 images without artifacts, 10 of
    them with a segmentation."""
    root = tmp_path_factory.mktemp('ISIC')
    images, labels = (root / f'ISIC-2017_Training_{name}' for name in ('Data', 'Part1_GroundTruth'))
    images.mkdir()
    labels.mkdir()
    drawn = (phantom.draw_skin(np.random.default_rng(seed), 128, True)
             for seed in itertools.count())
    plain = ((image, label) for image, label in drawn if not dermoscopy.find_artifacts(image)
             and not dermoscopy.has_dark_corners(image))
    for number, (image, label) in enumerate(itertools.islice(plain, 12)):
        name = f'ISIC_{number:07}'
        Image.fromarray(image).resize((160, 120)).save(images / f'{name}.jpg', quality=95)
        if number < 10:
            ending = '_Segmentation' if number % 2 else '_segmentation'
            Image.fromarray(label).resize((160, 120), 0).save(labels / f'{name}{ending}.png')
    Image.new('RGB', (160, 120)).save(images / 'ISIC_0000001_superpixels.png')
    (images / 'attribution.txt').write_text('CC-0')
    return images, labels


def test_images_labels_and_normal_crops(program, archive, monkeypatch):
    seen = []

    def find_artifacts(pixels: np.ndarray) -> list[str]:
        """The image that is looked at first shows a ruler."""
        seen.append(pixels.tobytes())
        return ['ruler'] if seen[-1] == seen[0] else []
    monkeypatch.setattr(dermoscopy, 'find_artifacts', find_artifacts)
    monkeypatch.setattr(writer, 'cpu_count', lambda: 0)  # no threads: images come in order
    out = program.done(*ISIC, *archive, '--split', 4, 3, 3)
    data, content = program.data, description(program.data)
    assert sorted(content['left_out'].values()) == ['not needed for --split', 'ruler']
    assert '1 ruler' in out and '--profile dermoscopy' in out
    counts = content['counts']
    assert (counts['trainA'], counts['val/images'], counts['testA']) == (4, 3, 3)
    assert (counts['val/labels'], counts['test/labels']) == (3, 3)
    assert not stems(data / 'trainA') & stems(data / 'testA')
    for split in ('train', 'test'):  # normal crops come from the images of their own split
        crops = {stem.removesuffix('_health') for stem in stems(data / f'{split}B')}
        assert crops <= stems(data / f'{split}A')
    assert stems(data / 'trainB')
    assert {read_pixels(path).shape[:2] for path in data.rglob('*.png')} == {(64, 64)}
    # labels are those of their images: the segmentation resized, at most a rim apart
    for path in (data / 'test' / 'labels').iterdir():
        source = next(label for label in archive[1].iterdir()
                      if label.stem.lower() == path.stem.lower())
        resized = np.asarray(Image.open(source).resize((64, 64))) > 127
        assert (resized == (read_pixels(path) > 0)).mean() > 0.99
    monkeypatch.undo()
    program.done(*ISIC, *archive, '--split', 0.5, 0.1, 0.4, '--overwrite', True)
    assert len(list(data.glob('*B/*_health.png'))) >= 5
    for crop in data.glob('testB/*_health.png'):  # drawn lesions are darker than skin
        stem = crop.stem.removesuffix('_health')
        label = read_pixels(data / 'test' / 'labels' / f'{stem}_segmentation.png')
        image = read_pixels(data / 'testA' / f'{stem}.png')
        assert read_pixels(crop).mean() > image[label > 0].mean()


def test_images_without_segmentations(program, archive, monkeypatch):
    out = program.done(*ISIC, archive[0], '--split', 8, 2, 2)
    assert 'val, which chooses by labels, stays empty' in out
    data = program.data
    assert len(stems(data / 'trainA')) == 8 and len(stems(data / 'testA')) == 2
    assert stems(data / 'trainB') and not (data / 'val').exists() and not (data / 'test').exists()
    # where some have segmentations, the others are for training
    program.done(*ISIC, *archive, '--split', 2, 5, 5, '--overwrite', True)
    assert stems(data / 'trainA') == {'ISIC_0000010', 'ISIC_0000011'}
    for published in ((200, 31, 31), (8, 2, 2)):  # too few; too few without the ruler
        monkeypatch.setitem(writer.DEFAULT_SPLIT, 'isic', published)
        looked = iter([['ruler']] + 99 * [[]])
        monkeypatch.setattr(dermoscopy, 'find_artifacts', lambda _, looked=looked: next(looked))
        out = program.done(*ISIC, *archive, '--overwrite', True)
        assert f'published split of {" ".join(map(str, published))}: split by fractions' in out
        assert stems(data / 'val/images') and stems(data / 'testA')
    refused = program.run(*ISIC, *archive, '--split', 1, 6, 5, '--overwrite', True)
    assert_one_line_error(refused, 'only 1 for train, 5 for val, 5 for test')


def skin_image(*artifacts: str) -> np.ndarray:
    """A round lesion in the middle of slightly noisy skin, with these artifacts."""
    image = np.where(LESION[..., None], (110, 65, 50), (215, 170, 150))
    image = image + np.random.default_rng(0).normal(0, 2, image.shape)
    image = image.clip(0, 255).astype(np.uint8)
    if 'ruler' in artifacts:  # along the lower side
        for x in range(20, 240, 10):
            cv2.line(image, (x, HEIGHT - 4), (x, HEIGHT - 14), (20, 20, 20), 1)
    if 'color patch' in artifacts:  # top left
        cv2.circle(image, (0, 30), 30, (50, 90, 210), -1)
    return image


@pytest.mark.parametrize('factor', (0.5, 1, 2))
def test_artifacts_are_found_at_any_size(factor):
    for artifacts in ([], ['ruler', 'color patch']):
        image = cv2.resize(skin_image(*artifacts), None, fx=factor, fy=factor,
                           interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
        assert set(dermoscopy.find_artifacts(image)) >= set(artifacts)
    assert not dermoscopy.find_artifacts(skin_image())


@pytest.mark.parametrize('seed', (1, 2, 4))
def test_stubble_is_no_ruler(seed):
    """Many short parallel hairs, some of them at even steps by chance."""
    rng, image = np.random.default_rng(seed), skin_image()
    for x, y in rng.uniform(0, 1, (100, 2)) * (WIDTH, HEIGHT):
        angle, half = 0.8 + rng.normal(0, 0.15), rng.uniform(3, 9)
        ends = np.rint([(x + side * half * np.cos(angle), y + side * half * np.sin(angle))
                        for side in (-1, 1)]).astype(int).tolist()
        cv2.line(image, *ends, (60, 45, 40), 1, cv2.LINE_AA)
    assert not dermoscopy.find_artifacts(image)


@pytest.mark.parametrize('label', (LESION, None), ids=('labeled', 'unlabeled'))
def test_a_plain_corner_holds_neither_lesion_nor_artifact(label):
    for seed in range(10):
        top, left, side = dermoscopy.plain_corner(skin_image(), label, np.random.default_rng(seed))
        assert top in (0, HEIGHT - side) and left in (0, WIDTH - side)
        assert not LESION[top:top + side, left:left + side].any()
    rng = np.random.default_rng(0)
    top, left, _ = dermoscopy.plain_corner(skin_image('ruler', 'color patch'), label, rng)
    assert top == 0 and left > 0
    assert dermoscopy.plain_corner(skin_image(), np.ones(SIZE, bool), rng) is None


def with_vignette(image: np.ndarray, radius: float) -> np.ndarray:
    """The image in a black surround that begins softly at this radius, px."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    light = ((radius - np.hypot(y - HEIGHT / 2, x - WIDTH / 2)) / 6 + 0.5).clip(0, 1)
    noise = np.random.default_rng(1).normal(0, 2, image.shape)
    return (image * light[..., None] + noise + 5).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize('is_labeled', (True, False), ids=('labeled', 'unlabeled'))
@pytest.mark.parametrize('radius', (90, 128, 145), ids=('circle', 'cut circle', 'corners'))
def test_the_crop_lies_inside_the_vignette_around_the_lesion(radius, is_labeled):
    image = with_vignette(skin_image(), radius)
    crop = vignette.bright_crop(image, LESION if is_labeled else None)
    assert LESION[crop.window].sum() == LESION.sum() and crop.dark_share < 0.02
    inside = image[crop.window]
    assert not dermoscopy.has_dark_corners(inside) and inside.min() > 30
    largest = max(4 * np.sqrt(radius ** 2 - half ** 2).clip(0, WIDTH / 2) * half
                  for half in np.arange(1, min(radius, HEIGHT / 2)))
    assert 0.85 * largest < crop.height * crop.width < 1.02 * largest
    assert vignette.bright_crop(skin_image(), None) == (0, 0, HEIGHT, WIDTH, 0)


def test_a_lesion_in_the_corner_of_the_view_stays_whole():
    lesion = disc(SIZE, (150, 190), 30)  # dark, and beyond the largest rectangle
    image = np.where(lesion[..., None], skin_image() // 4, skin_image())
    crop = vignette.bright_crop(with_vignette(image, 110), lesion)
    assert lesion[crop.window].sum() == lesion.sum()
    assert 0 < crop.dark_share < vignette.MOST_DARK and crop.height * crop.width < lesion.size


def test_raw_images_with_dark_corners_are_cropped_with_their_labels(program, tmp_path):
    """And those whose label reaches beyond the field of view are left out, unless asked for."""
    raw = tmp_path / 'raw'
    raw.mkdir()
    for number in range(8):
        lesion = disc(SIZE, (96, 128), 95) if number < 3 else LESION
        image = with_vignette(np.where(lesion[..., None], (110, 65, 50), (215, 170, 150)), 90)
        name = f'ISIC_{number:07}'
        Image.fromarray(image).save(raw / f'{name}.png')
        Image.fromarray(lesion).save(raw / f'{name}_segmentation.png')
    out = program.done(*ISIC, raw, '--split', 0.4, 0.2, 0.4)
    assert '5 cropped to what lies inside their dark corners' in out
    assert out.splitlines()[-1].startswith('only 5 of 8 disease images are used; left out: 3 dark')
    assert '--keep_artifacts True' in out.splitlines()[-1] and '--img_size 64' in out
    crops = description(program.data)['crops']
    for name, (top, left, height, width) in crops.items():
        assert 0 < top and 0 < left and height < HEIGHT and width < WIDTH
        label = program.data / 'test' / 'labels' / f'{name}_segmentation.png'
        if label.exists():
            assert read_pixels(label).mean() / 255 == pytest.approx(
                LESION.sum() / (height * width), rel=0.05)
    for path in program.data.glob('*/ISIC_*.png'):
        assert read_pixels(path).min() > 30
    refused = program.run(*ISIC, raw, '--split', 4, 2, 2, '--overwrite', True)
    assert_one_line_error(refused, 'only 1 for train', '3 dark corners', '--keep_artifacts True')
    out = program.done(*ISIC, raw, '--split', 4, 2, 2, '--overwrite', True, '--keep_artifacts',
                       True)
    assert '3 still show dark corners' in out


def test_folders_with_dark_corners_are_told_of_and_with_the_profile_cropped(program, tmp_path):
    for number in range(6):
        lesion = LESION & (number < 3)
        image = with_vignette(np.where(lesion[..., None], (110, 65, 50), (215, 170, 150)), 100)
        folder = tmp_path / ('ill' if number < 3 else 'well')
        folder.mkdir(exist_ok=True)
        image = np.roll(image, number, 1)  # or they would be equal
        Image.fromarray(image).save(folder / f'{number}.png')
    flags = ['--source_format', 'folders', '--source', tmp_path / 'ill', tmp_path / 'well']
    out = program.done(*flags)
    assert '6 images have dark corners, as 0.png' in out and '--profile dermoscopy' in out
    out = program.done(*flags, '--profile', 'dermoscopy', '--overwrite', True)
    assert '6 cropped to what lies inside their dark corners' in out
    assert 'next: python main.py --phase train --dataset Made --profile dermoscopy' in out
    assert 'have dark corners' not in out and len(description(program.data)['crops']) == 6
    assert all(read_pixels(path).min() > 30 for path in program.data.glob('*/*.png'))
    assert '6 cropped' in program.done(*flags, '--dataset', 'ISIC')  # of this profile


def test_without_plain_skin_there_is_nothing_to_train_on(program, tmp_path):
    raw = tmp_path / 'raw'
    raw.mkdir()
    for number in range(4):
        Image.fromarray(skin_image()).save(raw / f'ISIC_{number:07}.png')
        Image.new('L', (WIDTH, HEIGHT), 255).save(raw / f'ISIC_{number:07}_segmentation.png')
    assert_one_line_error(program.run(*ISIC, raw, '--split', 0.6, 0.2, 0.2),
                          'trainB would be empty', 'plain skin')
    assert not program.data.exists()
