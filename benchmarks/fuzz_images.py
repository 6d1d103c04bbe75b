"""Random trees of image files through prepare, the check before training, test and predict.

    python benchmarks/fuzz_images.py [--count 500] [--seed 0]

Draws folders of images as people have them: odd names, links, endings, bit depths, palettes,
opacity, EXIF orientations, color profiles, damaged files, masks and thumbnails beside images. All
four commands run on each, in this process. A traceback, an exit code other than 0, 1 (files were
left out, and listed) and 2 (one line), a mask of another size than its image is seen in, and any
change to the tree are failures; the exit code is 1 where there was one."""
import hashlib
import io
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image, ImageOps

from common import fuzz_options

# isort: split
from fuzz import outcome
from helpers import STAGE_1, TINY_FLAGS, draw_data_set
from image_samples import bmp_header, png_16, tiff

STEMS = ['a', 'b', 'c', 'x1', 'ISIC_0000001', 'ä ö', 'a\u0308', '病变', '👩\u200d⚕️', 'a.b', '-x',
         '=1+1', '[1]', '*', '~', "it's", 'x' * 120, 'A', 'new\nline', '\u202eabc', ' ', 'a_mask',
         'b_lesion', 'c_roi', 'x1_gt', 'x1_seg', 'a_segmentation', 'benign (1)', '.hidden', '%s']
ENDINGS = ['.png', '.PNG', '.jpg', '.JPEG', '.jfif', '.bmp', '.tif', '.TIFF', '.webp', '.gif',
           '.Png', '.dcm', '.txt', '']
FOLDERS = ['', '', '', '', 'deep', 'deep/er', '@eaDir', '#recycle', '.thumbnails', 'Thumbs',
           'masks', 'x.png', 'a_lesion', 'images2']
PARTS = ['trainA', 'trainA', 'trainB', 'testA', 'testB', 'test/labels', 'val/images', 'val/labels']
FORMAT = {'.jpg': 'JPEG', '.jpeg': 'JPEG', '.jfif': 'JPEG', '.bmp': 'BMP', '.tif': 'TIFF',
          '.tiff': 'TIFF', '.webp': 'WEBP', '.gif': 'GIF'}  # else PNG
MODES = ['RGB', 'RGB', 'RGB', 'L', '1', 'P', 'RGBA', 'LA', 'CMYK', 'I;16', 'F', 'I', 'YCbCr', 'LAB']
SIZES = [(40, 36), (40, 36), (24, 24), (33, 7), (1, 1), (2, 90)]


def pixels_of(rng: random.Random, size: tuple[int, int], channels: int = 3) -> np.ndarray:
    """Noise with a bright square, H×W×channels uint8."""
    numbers = np.random.default_rng(rng.randrange(2 ** 32))
    pixels = numbers.integers(0, 100, (size[1], size[0], channels), dtype=np.uint8)
    pixels[size[1] // 4:size[1] // 2, size[0] // 4:size[0] // 2] = 220
    return pixels


def label_of(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """A label: two values as a rule, of several types."""
    label = (pixels_of(rng, size)[..., 0] > 200).astype(np.uint8)
    kinds = [label * 255, label, label > 0, label * np.uint16(65535), label.astype(np.float32),
             label * 0, label * 0 + 1, label * 127 + 1, pixels_of(rng, size)[..., 0]]
    return Image.fromarray(rng.choice(kinds))


def draw_photograph(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """An image of any mode that Pillow has."""
    mode, image = rng.choice(MODES), Image.fromarray(pixels_of(rng, size))
    if mode == 'I;16':
        return Image.fromarray(pixels_of(rng, size)[..., 0] * np.uint16(rng.choice([1, 16, 257])))
    if mode in ('F', 'I'):
        values = np.asarray(image.convert(mode)).copy()
        if mode == 'F':
            values[0, 0] = rng.choice([0, np.nan, np.inf, -3e38])
        return Image.fromarray(values)
    if mode == 'LAB':
        return Image.merge('LAB', image.split())
    return image.convert(mode)


def content(rng: random.Random, ending: str, image: Image.Image) -> bytes:
    """An image as a file of the format that the ending promises, or nearly."""
    kind = FORMAT.get(ending.lower(), 'PNG') if rng.random() < 0.85 else rng.choice(
        ['PNG', 'JPEG', 'TIFF', 'GIF', 'WEBP', 'PPM', 'EPS', 'TGA', 'ICO', 'JPEG2000'])
    options = {}
    if rng.random() < 0.3:
        options['exif'] = Image.Exif()
        options['exif'][274] = rng.choice([*range(10), 300])
        if rng.random() < 0.1:
            options['exif'] = rng.randbytes(40)
    if rng.random() < 0.2:
        options['icc_profile'] = rng.randbytes(rng.choice([10, 3000, 70_000]))
    if kind == 'PNG' and rng.random() < 0.1:
        options['transparency'] = 0
    file = io.BytesIO()
    for arguments in (options, {}):
        for changed in (image, image.convert('RGB') if image.mode != 'LAB' else image):
            try:
                file = io.BytesIO()
                changed.save(file, kind, **arguments)
                return file.getvalue()
            except Exception:  # Pillow writes not every mode in every format
                continue
    return file.getvalue()


def special(rng: random.Random, size: tuple[int, int]) -> bytes:
    """What Pillow does not write, and what is no image."""
    deep = pixels_of(rng, size, rng.choice([1, 2, 3, 4])).astype(np.uint16)
    deep *= rng.choice([1, 16, 257])
    if rng.random() < 0.4:
        return png_16(deep if deep.shape[2] > 1 else deep[..., 0])
    if rng.random() < 0.7:
        types = [np.uint8, np.uint16, np.int16, np.int32, np.uint32, np.float32, np.float64]
        return tiff(deep.astype(rng.choice(types)), rng.choice('<>'), rng.randrange(10),
                    rng.random() < 0.3, rng.choice([0, 1, 2]))
    return rng.choice([b'', b'text', bmp_header(20000), bytes(128) + b'DICM' + bytes(50),
                       b'\0\5\x16\7' + bytes(100), b'%!PS-Adobe-3.0 EPSF-3.0\n',
                       rng.randbytes(300)])


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Cut off, or with some bits flipped."""
    if rng.random() < 0.5 or not data:
        return data[:rng.randrange(len(data) + 1)]
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 20])):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def put(rng: random.Random, path: Path, root: Path, size: tuple[int, int]) -> None:
    """Draw a file, a link or a pipe at path, unless there is something already."""
    if os.path.lexists(path) or path.parent.is_file():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:  # below a file or a broken link
        return
    kind = rng.random()
    if kind < 0.08:
        places = [path.name, 'nowhere', root, path.parent, path.parent.parent, root / 'store',
                  root / 'store' / 's.png', *path.parent.iterdir()]
        path.symlink_to(rng.choice(places))
    elif kind < 0.09:
        os.mkfifo(path)
    else:
        data = (special(rng, size) if kind < 0.2 else content(
            rng, path.suffix, label_of(rng, size) if 'label' in str(path.parent)
            or path.stem.endswith(('_mask', '_gt', '_seg')) else draw_photograph(rng, size)))
        path.write_bytes(damaged(rng, data) if rng.random() < 0.08 else data)


def draw_tree(rng: random.Random, root: Path) -> None:
    """A data set `Raw` laid out as ours, and a folder `store` that links may lead to."""
    (root / 'store').mkdir(parents=True)
    Image.new('RGB', (8, 8)).save(root / 'store' / 's.png')
    size = rng.choice(SIZES)
    tame = rng.random() < 0.4  # else hardly one tree would get through the check
    for part in ('trainA', 'trainB', 'testA'):
        folder = root / 'Raw' / part
        folder.mkdir(parents=True)
        for stem in ('p', 'q'):
            Image.fromarray(pixels_of(rng, size)).save(folder / f'{stem}.png')
    for _ in range(rng.choice([1, 3, 8, 20])):
        part = root / 'Raw' / rng.choice(PARTS[:5] if tame else PARTS)
        stem, ending = rng.choice(STEMS), rng.choice(ENDINGS[:11] if tame else ENDINGS)
        if 'labels' in part.parts:
            stem = rng.choice(['p', 'q', stem]) + '_segmentation'
        if part.name in ('images', 'testA') and rng.random() < 0.3:  # and its label
            put(rng, root / 'Raw' / {'images': 'val'}.get(part.name, 'test') / 'labels'
                / f'{stem}_segmentation.png', root, size)
        shape = size if rng.random() < 0.8 else rng.choice(SIZES)
        put(rng, part / rng.choice(FOLDERS) / f'{stem}{ending}', root, shape)


def state(root: Path) -> dict[str, str]:
    """Everything below a folder, with links' targets and files' content."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            found[str(path)] = (os.readlink(path) if path.is_symlink() else
                                hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file()
                                else 'other')
    return found


def commands(rng: random.Random, root: Path, checkpoint: Path) -> list[list[str]]:
    """Prepare, the check before training, test and predict of a tree; what they write is beside."""
    raw, results = root / 'user' / 'Raw', root / 'results'
    sources = rng.choice([[raw], [raw / 'trainA', raw / 'trainB'],
                          [raw / 'testA', raw / 'trainB', raw / 'test/labels']])
    flags = ['--dataset', 'Raw', '--data_root', raw.parent, '--result_dir', results]
    tiny = [*TINY_FLAGS, *STAGE_1, '--batch_size', 1, '--iteration', 1]
    lines = [
        ['--phase', 'prepare', '--source_format', rng.choice(['folders'] * 9 + ['isic']),
         '--source', *sources, '--dataset', 'Made', '--data_root', root / 'made', '--img_size', 32],
        ['--phase', 'train', '--dry_run', True, *flags, *tiny, '--skip_bad', rng.random() < 0.7],
        ['--phase', 'test', *flags, *STAGE_1, '--checkpoint', checkpoint, '--device', 'cpu',
         '--num_workers', 0, '--save_visuals', rng.random() < 0.2],
        ['--phase', 'predict', '--checkpoint', checkpoint, '--device', 'cpu', '--num_workers', 0,
         '--input', rng.choice([raw, raw / 'trainA', raw / 'testA']), '--output', root / 'masks']]
    return [[str(argument) for argument in line] for line in lines]


def is_fine(code: int | None, stderr: str) -> bool:
    """Whether it succeeded, left out files that it lists, or ended with one clear error."""
    lines = [line for line in stderr.replace('\r', '\n').split('\n') if line.strip()
             and '%|' not in line and not line.startswith(('  ', 'left out: '))]
    if 'Traceback' in stderr or code == 0:
        return code == 0 and not lines
    return (code == 1 and lines[:1] == ['left out, since they cannot be used:']
            or code == 2 and lines[:1] != [] and lines[0].startswith('error: '))


def wrong_sizes(source: Path, masks: Path) -> list[str]:
    """Masks of another size than their image has as people see it."""
    wrong = []
    for mask in filter(Path.is_file, masks.rglob('*.png')):
        seen = []
        for path in (source / mask.parent.relative_to(masks)).iterdir():
            if path.stem == mask.stem and path.is_file():
                with suppress(Exception), Image.open(path) as image:
                    seen.append(image.size)  # of a damaged orientation
                    seen[-1] = ImageOps.exif_transpose(image).size
        if Image.open(mask).size not in seen:
            wrong.append(f'{mask}: {Image.open(mask).size}, but its image is seen as {seen}')
    return wrong


def train(root: Path) -> Path:
    """The checkpoint of a tiny network."""
    draw_data_set(root / 'data')
    outcome([str(word) for word in (
        '--phase', 'train', '--dataset', 'Tiny', '--data_root', root / 'data', '--result_dir',
        root / 'trained', *TINY_FLAGS, *STAGE_1, '--batch_size', 1, '--iteration', 1)])
    return root / 'trained' / 'Tiny' / 'model1' / 'best.pt'


def use(rng: random.Random, case: Path, checkpoint: Path, codes: Counter) -> list[str]:
    """Draw a tree in a folder, run the commands on it and count their exit codes; what failed."""
    failures = []
    draw_tree(rng, case / 'user')
    before = state(case / 'user')
    for line in commands(rng, case, checkpoint):
        code, stderr = outcome(line)
        codes[line[1], code] += 1
        if not is_fine(code, stderr):
            failures.append(f'exit code {code}: main.py {" ".join(line)}\n{stderr[-1500:]}')
    failures += wrong_sizes(Path(line[line.index('--input') + 1]), case / 'masks')
    after = state(case / 'user')
    return failures + [f'{path} was changed' for path in before.keys() | after.keys()
                       if before.get(path) != after.get(path)]


def run(count: int, seed: int = 0, report: Callable[[str], object] = print,
        checkpoint: Path | None = None) -> list[str]:
    """Draw and use that many trees; what failed. Without a `checkpoint` a network is trained."""
    failures, codes = [], Counter()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = checkpoint or train(Path(folder))
        for number in range(count):
            case = Path(folder, str(number))
            failed = use(random.Random(f'{seed} {number}'), case, checkpoint, codes)
            for failure in failed:
                report(f'{number}: {failure}')
            failures += failed
            shutil.rmtree(case)
            if number % 50 == 49:
                report(f'{number + 1} done, {len(failures)} failures')
    report(f'{count} trees, {len(failures)} failures; phase and exit code: '
           + ', '.join(f'{phase} {code}: {times}' for (phase, code), times in sorted(
               codes.items(), key=str)))
    return failures


if __name__ == '__main__':
    options = fuzz_options(__doc__)
    with mock.patch.dict(os.environ, {'TQDM_DISABLE': '1'}):
        sys.exit(1 if run(options.count, options.seed) else 0)
