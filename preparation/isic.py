"""ISIC archives: dermoscopy images and their segmentations, and crops of plain skin as normal."""
import re
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

import dataset
from preparation import dermoscopy
from preparation.writer import DatasetWriter, SplitFiller, read_pair, resize_image, resize_label
from utils import UserError

FILE_NAME = re.compile(r'(?P<name>ISIC_\d+)(_downsampled)?(?P<label>_segmentation)?', re.I)


class Sample(NamedTuple):
    """What is made of one image; where it shows artifacts, only these are set."""

    artifacts: list[str]
    image: Image.Image | None = None
    label: np.ndarray | None = None  # bool H×W
    normal: Image.Image | None = None  # a crop of plain skin


def from_isic(writer: DatasetWriter, sources: list[Path]) -> None:
    """Dermoscopy images; normal ones are corner crops of plain skin, cut from the images of train
    and of test; a crop is a function of --seed and the image's name. Images with dark corners,
    rulers or color patches are left out."""
    images, labels = find_isic(writer, sources)
    filler = SplitFiller(writer, list(images), labels)
    seed, size = writer.config.seed, writer.config.size

    def prepare(name: str) -> Sample:
        image, label = read_pair(images[name], labels.get(name))
        pixels = np.asarray(image)
        if artifacts := dermoscopy.find_artifacts(pixels):
            return Sample(artifacts)
        rng = np.random.default_rng([seed % 2 ** 32, zlib.crc32(name.encode())])
        normal = None
        if corner := dermoscopy.plain_corner(pixels, label, rng):
            top, left, side = corner
            normal = resize_image(image.crop((left, top, left + side, top + side)), size)
        return Sample([], resize_image(image, size), resize_label(label, size), normal)

    for number, (name, sample) in enumerate(writer.process(prepare, filler.names,
                                                           'looking at images')):
        if not sample:
            continue
        if sample.artifacts:
            writer.left_out[images[name]] = ', '.join(sample.artifacts)
            continue
        split = filler.next_split(sample.label is not None)
        if split is None:
            writer.left_out |= {images[name]: writer.SURPLUS for name in filler.names[number:]}
            break
        writer.add(split, 'A', name, sample.image, sample.label)
        if split != 'val' and sample.normal:
            writer.add(split, 'B', f'{name}_health', sample.normal)
    filler.check()


def find_isic(writer: DatasetWriter, sources: list[Path]
              ) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and labels by name, ISIC_<number>; raises UserError where there is no image. A file
    whose name comes twice goes to `writer.problems`."""
    images, labels = {}, {}
    paths = [path for source in sources for path in dataset.find_images(source)]
    for path in sorted(paths, key=lambda path: path.name):
        match = FILE_NAME.fullmatch(path.stem)
        if match:
            first = (labels if match['label'] else images).setdefault(match['name'], path)
            if first is not path:
                writer.problems.add(path, f'named as {first} is; remove one')
    if not images:
        raise UserError(f'--source {" ".join(map(str, sources))}: holds no images named '
                        'ISIC_<number>.jpg; for others use --source_format folders')
    return images, labels
