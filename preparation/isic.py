"""ISIC archives: dermoscopy images and their segmentations, and crops of plain skin as normal."""
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

import dataset
from preparation import dermoscopy
from preparation.writer import DatasetWriter, SplitFiller, read_pair, resize_image, resize_label
from utils import UserError

FILE_NAME = re.compile(r'(?P<name>ISIC_\d+)(_downsampled)?(?P<label>_segmentation)?', re.I)


def from_isic(writer: DatasetWriter, sources: list[Path]) -> None:
    """Dermoscopy images without artifacts; normal ones are corner crops of plain skin, cut from the
    images of train and test; a crop is a function of --seed and the image's name."""
    images, labels = find_isic(writer, sources)
    filler = SplitFiller(writer, list(images), labels)
    seed, size = writer.config.seed, writer.config.size

    def prepare(name: str) -> tuple[list[str], Any, Any, Any]:
        """Its artifacts or, of an image without any, image, label bool H×W and crop of skin."""
        image, label = read_pair(images[name], labels.get(name))
        pixels = np.asarray(image)
        if artifacts := dermoscopy.find_artifacts(pixels):
            return artifacts, None, None, None
        rng = np.random.default_rng([seed % 2 ** 32, zlib.crc32(name.encode())])
        normal = None
        if corner := dermoscopy.plain_corner(pixels, label, rng):
            top, left, side = corner
            normal = resize_image(image.crop((left, top, left + side, top + side)), size)
        return [], resize_image(image, size), resize_label(label, size), normal

    for number, (name, sample) in enumerate(writer.process(prepare, filler.names,
                                                           'looking at images')):
        if not sample:
            continue
        artifacts, image, label, normal = sample
        if artifacts:
            writer.left_out[images[name]] = ', '.join(artifacts)
            continue
        split = filler.next_split(label is not None)
        if split is None:
            writer.left_out |= {images[name]: writer.SURPLUS for name in filler.names[number:]}
            break
        writer.add(split, 'A', name, image, label)
        if split != 'val' and normal:
            writer.add(split, 'B', f'{name}_health', normal)
    filler.check()


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
