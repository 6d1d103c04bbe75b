"""ISIC archives: dermoscopy images and their segmentations, and crops of plain skin as normal."""
import re
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

import dataset
from config import Config
from preparation import dermoscopy, vignette
from preparation.writer import DatasetWriter, SplitFiller, read_pair, resize_image, resize_label
from utils import UserError

FILE_NAME = re.compile(r'(?P<name>ISIC_\d+)(_downsampled)?(?P<label>_segmentation)?', re.I)


class Sample(NamedTuple):
    """What becomes of an image: why it is left out or else, prepared, image, label bool H×W and,
    if it shows plain skin, a normal crop."""

    artifacts: list[str]
    crop: vignette.Crop | None  # of an image with dark corners
    image: Image.Image | None = None
    label: np.ndarray | None = None
    normal: Image.Image | None = None
    still_dark: bool = False  # in two corners or more, however cropped


def from_isic(writer: DatasetWriter, sources: list[Path]) -> None:
    """Dermoscopy images without artifacts, cropped to what lies inside dark corners; normal ones
    are corner crops of plain skin, cut from the images of train and test; a crop is a function of
    --seed and the image's name."""
    images, labels = find_isic(writer, sources)
    filler = SplitFiller(writer, list(images), labels)
    crops = writer.details['crops'] = {}
    still_dark = 0
    for number, (name, sample) in enumerate(writer.process(
            lambda name: prepare(name, images[name], labels.get(name), writer.config),
            filler.names, 'looking at images')):
        if not sample:
            continue
        if not sample.image:
            writer.left_out[images[name]] = ', '.join(sample.artifacts)
            continue
        split = filler.next_split(sample.label is not None)
        if split is None:
            writer.left_out |= {images[name]: writer.SURPLUS for name in filler.names[number:]}
            break
        writer.add(split, 'A', name, sample.image, sample.label)
        if split != 'val' and sample.normal:
            writer.add(split, 'B', f'{name}_health', sample.normal)
        if sample.crop:
            crops[name] = sample.crop[:4]
        still_dark += sample.still_dark
    vignette.note(writer.notes, len(crops), still_dark)
    filler.check()


def prepare(name: str, image_path: Path, label_path: Path | None, config: Config) -> Sample:
    """See Sample; raises UserError where the files cannot be read."""
    image, label = read_pair(image_path, label_path)
    image, label, crop = vignette.cropped(image, label)
    pixels = np.asarray(image)
    artifacts = dermoscopy.find_artifacts(pixels)
    if crop and crop.dark_share > vignette.MOST_DARK:
        artifacts.append(vignette.DARK_CORNERS)
    if artifacts and not config.keep_artifacts:
        return Sample(artifacts, None)
    rng = np.random.default_rng([config.seed % 2 ** 32, zlib.crc32(name.encode())])
    normal = None
    if corner := dermoscopy.plain_corner(pixels, label, rng):
        top, left, side = corner
        normal = resize_image(image.crop((left, top, left + side, top + side)), config.size)
    return Sample(artifacts, crop, resize_image(image, config.size),
                  resize_label(label, config.size), normal, vignette.show_dark_corners(pixels))


def find_isic(writer: DatasetWriter, sources: list[Path]
              ) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and labels by name, ISIC_<number>; repeated names are problems. Raises UserError."""
    images, labels, paths = {}, {}, []
    for source in sources:
        found, left_out = dataset.find_images(source, writer.problems, are_masks=True)
        paths += found
        writer.left_out |= left_out
    for path in sorted(paths, key=lambda path: path.name):
        match = FILE_NAME.fullmatch(path.stem)
        if match and writer.can_be_named(path, match['name']):
            first = (labels if match['label'] else images).setdefault(match['name'], path)
            if first is not path:
                writer.problems.add(path, f'named as {first} is; remove one')
    if not images:
        raise UserError(f'--source {" ".join(map(str, sources))}: holds no images named '
                        'ISIC_<number>.jpg; for others use --source_format folders')
    return images, labels
