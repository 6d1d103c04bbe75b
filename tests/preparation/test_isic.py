"""--source_format isic: dermoscopy images, and crops of plain skin as normal ones."""
import itertools
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers import Places, assert_one_line_error, read_pixels
from preparation import dermoscopy, phantom, writer
from prepared import description, stems


@pytest.fixture(scope='module')
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An archive like those of 2016 to 2018, for reading alone: 12 images without artifacts, 10 of
    them with a segmentation."""
    root = tmp_path_factory.mktemp('ISIC')
    images, labels = (root / f'ISIC-2017_Training_{name}' for name in ('Data', 'Part1_GroundTruth'))
    images.mkdir()
    labels.mkdir()
    drawn = (phantom.draw_skin(np.random.default_rng(seed), 128, True)
             for seed in itertools.count())
    plain = ((image, label) for image, label in drawn if not dermoscopy.find_artifacts(image))
    for number, (image, label) in enumerate(itertools.islice(plain, 12)):
        name = f'ISIC_{number:07}'
        Image.fromarray(image).resize((160, 120)).save(images / f'{name}.jpg', quality=95)
        if number < 10:
            ending = '_Segmentation' if number % 2 else '_segmentation'
            Image.fromarray(label).resize((160, 120), 0).save(labels / f'{name}{ending}.png')
    Image.new('RGB', (160, 120)).save(images / 'ISIC_0000001_superpixels.png')
    (images / 'attribution.txt').write_text('CC-0')
    return images, labels


def isic(program: Places, archive: tuple[Path, Path], *flags: Any) -> CompletedProcess:
    return program.run('--source', *archive, '--source_format', 'isic', *flags)


def test_images_labels_and_normal_crops(program, archive, monkeypatch):
    seen = []

    def find_artifacts(pixels: np.ndarray) -> list[str]:
        """The image that is looked at first shows a ruler."""
        seen.append(pixels.tobytes())
        return ['ruler'] if seen[-1] == seen[0] else []
    monkeypatch.setattr(dermoscopy, 'find_artifacts', find_artifacts)
    monkeypatch.setattr(writer, 'cpu_count', lambda: 0)  # no threads: images come in order
    result = isic(program, archive, '--split', 4, 3, 3)
    assert result.returncode == 0, result.stderr
    data, content = program.data, description(program.data)
    assert sorted(content['left_out'].values()) == ['not needed for --split', 'ruler']
    assert '1 ruler' in result.stdout and '--profile dermoscopy' in result.stdout
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
    assert isic(program, archive, '--split', 4, 3, 3, '--overwrite', True).returncode == 0


def test_normal_crops_hold_no_lesion(program, archive):
    assert isic(program, archive, '--split', 0.5, 0.1, 0.4).returncode == 0
    data = program.data
    assert len(list(data.glob('*B/*_health.png'))) >= 5
    for crop in data.glob('testB/*_health.png'):  # drawn lesions are darker than skin
        stem = crop.stem.removesuffix('_health')
        label = read_pixels(data / 'test' / 'labels' / f'{stem}_segmentation.png')
        image = read_pixels(data / 'testA' / f'{stem}.png')
        assert read_pixels(crop).mean() > image[label > 0].mean()


def test_without_segmentations(program, archive):
    result = isic(program, archive[:1], '--split', 8, 2, 2)
    assert result.returncode == 0, result.stderr
    assert 'val, which chooses by labels, stays empty' in result.stdout
    data = program.data
    assert len(stems(data / 'trainA')) == 8 and len(stems(data / 'testA')) == 2
    assert stems(data / 'trainB') and not (data / 'val').exists() and not (data / 'test').exists()


def test_unlabeled_images_are_for_training(program, archive):
    assert isic(program, archive, '--split', 2, 5, 5).returncode == 0
    assert stems(program.data / 'trainA') == {'ISIC_0000010', 'ISIC_0000011'}
    assert_one_line_error(isic(program, archive, '--split', 1, 6, 5, '--overwrite', True),
                          'only 1 for train, 5 for val, 5 for test')
