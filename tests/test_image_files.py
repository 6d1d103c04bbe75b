"""Files of images and labels: bit depths, orientation, what is lesion, what is left out."""
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

import fuzz_images
import image_files
from helpers import draw_images
from image_files import read_image, read_label
from image_samples import png_16, tiff
from utils import UserError

ROWS, COLUMNS = np.mgrid[:8, :12].astype(np.uint16)
COLORS = np.dstack([ROWS * 500, COLUMNS * 300, COLUMNS * 7 + 100])  # 12 bits, as of cameras
OPAQUE = np.full((8, 12, 1), 65535, np.uint16)
GRAY = COLORS[..., :1]
DEEP = {  # content of a file, and the colors it holds
    'png rgb': (png_16(COLORS), COLORS),
    'png rgba': (png_16(np.dstack([COLORS, OPAQUE])), COLORS),
    'png gray': (png_16(GRAY[..., 0]), GRAY),
    'png gray with opacity': (png_16(np.dstack([GRAY, OPAQUE])), GRAY),
    'tiff rgb': (tiff(COLORS), COLORS),
    'tiff rgb big-endian': (tiff(COLORS, '>'), COLORS),
    'tiff rgba': (tiff(np.dstack([COLORS, OPAQUE])), COLORS),
    'tiff rgba multiplied': (tiff(np.dstack([COLORS, OPAQUE]), extra=1), COLORS),
    'tiff int16': (tiff(GRAY.astype(np.int16) - 2000), GRAY),
    'tiff white is zero': (tiff(4000 - GRAY, colors_are=0), GRAY),
    'tiff float, white is zero': (tiff(1 - GRAY.astype(np.float32) / 5000, colors_are=0), GRAY),
    'tiff uint32': (tiff(GRAY.astype(np.uint32) * 1_000_000 + 5), GRAY),
    'tiff int8': (tiff((GRAY // 20 - 100).astype(np.int8)), GRAY // 20),
    'tiff int32': (tiff(GRAY.astype(np.int32) - 9), GRAY),
    'tiff float32': (tiff(GRAY.astype(np.float32) / 1e6), GRAY)}
ORIENTATIONS = range(1, 9)


@pytest.mark.parametrize('kind', DEEP)
def test_more_than_8_bits_are_scaled_by_their_own_range(kind, tmp_path):
    path = tmp_path / 'x.png'
    content, colors = DEEP[kind]
    path.write_bytes(content)
    expected = (colors - float(colors.min())) / np.ptp(colors) * 255
    assert np.abs(np.asarray(read_image(path), float) - expected).max() <= 0.51
    path.write_bytes(content[:-40])
    with pytest.raises(UserError, match='cannot be read as an image'):
        read_image(path)


def test_transparent_parts_of_16_bits_are_black_and_do_not_count(tmp_path):
    opacity = OPAQUE.copy()
    colors, opacity[0] = COLORS.copy(), 0
    colors[0] = 65535
    (tmp_path / 'x.png').write_bytes(png_16(np.dstack([colors, opacity])))
    values = np.asarray(read_image(tmp_path / 'x.png'))
    assert (values[0] == 0).all() and values.max() == 255


@pytest.mark.parametrize('colors', [COLORS, COLORS[..., 0]], ids=['rgb', 'gray'])
def test_a_transparent_color_and_an_orientation_after_the_pixels(colors, tmp_path):
    colors = colors.copy()
    colors[2, 3], path = 60000, tmp_path / 'x.png'
    clear = b'\xea\x60' * (3 if colors.ndim == 3 else 1)
    path.write_bytes(png_16(colors, clear, exif(3).tobytes()[6:]))
    values = np.asarray(read_image(path))[::-1, ::-1]
    assert values[2, 3].max() == 0 and values.max() == 255
    assert values[7, 11].max() > values[0, 0].max()
    path.write_bytes(png_16(COLORS[:, :6], exif=exif(6).tobytes()[6:]))
    with image_files.open_image(path) as image:
        assert image_files.shown_size(image) == read_image(path).size == (8, 6)


def test_a_first_page_that_is_a_thumbnail_is_refused(tmp_path):
    large, small, path = Image.new('L', (9, 8), 200), Image.new('L', (3, 2), 9), tmp_path / 'x.tif'
    large.save(path, save_all=True, append_images=[small, large])
    assert np.asarray(read_image(path, 1)).tolist() == np.asarray(large).tolist()
    small.save(path, save_all=True, append_images=[small, large])
    with pytest.raises(UserError, match='x.tif: .*first page is smaller than another'):
        read_image(path)


@pytest.mark.parametrize('content', [tiff(COLORS, separate=True),
                                     tiff(np.dstack([GRAY, OPAQUE])),
                                     tiff(np.dstack([COLORS, GRAY]), colors_are=5)],
                         ids=['planes', 'gray', 'CMYK'])
def test_what_would_lose_bits_is_refused(content, tmp_path):
    (tmp_path / 'x.tif').write_bytes(content)
    with pytest.raises(UserError, match='x.tif: cannot be read.* save it as PNG'):
        read_image(tmp_path / 'x.tif')


@pytest.mark.parametrize('odd', [np.inf, -np.inf, np.nan, -3e38, 1e30])
def test_one_pixel_does_not_make_a_float_image_black(odd, tmp_path):
    values = np.linspace(0, 1, 3600, dtype=np.float32).reshape(60, 60)
    values[30, 30] = odd
    (tmp_path / 'x.tif').write_bytes(tiff(values))
    pixels = np.asarray(read_image(tmp_path / 'x.tif', 1), float)
    assert pixels[30, 30] in (0, 255)
    assert np.abs(pixels - values.clip(0, 1) * 255)[:30].max() < 1.5
    (tmp_path / 'x.tif').write_bytes(tiff(np.full((3, 3), np.nan, np.float32)))
    with pytest.raises(UserError, match='finite'):
        read_image(tmp_path / 'x.tif')


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[274] = orientation
    return data


@pytest.mark.parametrize('orientation', ORIENTATIONS)
@pytest.mark.parametrize('ending', ['png', 'webp', 'tif', 'jpg'])
def test_images_and_labels_are_turned_to_what_people_see(orientation, ending, tmp_path):
    image, label = tmp_path / f'x.{ending}', tmp_path / 'label.png'
    stored = np.zeros((8, 16), np.uint8)
    stored[:4, :6] = 255
    options = {'lossless': True} if ending == 'webp' else {'quality': 95} if ending == 'jpg' else {}
    Image.fromarray(stored).convert('RGB').save(image, exif=exif(orientation), **options)
    Image.fromarray(stored).save(label, exif=exif(orientation))
    seen = np.asarray(ImageOps.exif_transpose(Image.open(label))) > 0
    assert (orientation == 1) == (seen.shape == (8, 16) and (seen == (stored > 0)).all())
    np.testing.assert_array_equal(np.asarray(read_image(image, 1)) > 127, seen)
    with image_files.open_image(image) as opened:
        assert image_files.shown_size(opened) == seen.shape[::-1]
    np.testing.assert_array_equal(read_label(label, image), seen)  # that says so itself
    Image.fromarray(seen).save(label)  # drawn on what is seen
    np.testing.assert_array_equal(read_label(label, image), seen)
    if orientation > 4 and ending != 'tif':  # drawn on what is stored, as its size tells
        Image.fromarray(stored).save(label)
        np.testing.assert_array_equal(read_label(label, image), seen)
    Image.fromarray(stored[:7]).save(label)
    with pytest.raises(UserError, match=f'label.png: 16×7 px, but x.{ending} is '):
        read_label(label, image)


def test_a_damaged_orientation_counts_as_upright(tmp_path):
    for data in (b'Exif\0\0II*\0\xff\xff\xff\xff', b'Exif\0\0nonsense', exif(99).tobytes()):
        Image.new('RGB', (4, 2)).save(tmp_path / 'x.jpg', exif=data)
        assert read_image(tmp_path / 'x.jpg').size == (4, 2)


HALF = np.zeros((60, 60), np.uint8)
HALF[:30] = 1
OPACITY = np.dstack([HALF * 0] * 3 + [HALF * 255])


def palette(*colors: int) -> Image.Image:
    image = Image.fromarray(HALF).convert('P')
    image.putpalette([*colors, *[0] * (768 - len(colors))])
    return image


LABELS = {  # name: (content, share of lesion)
    'u16 ones': (np.full((60, 60), 1, np.uint16), 1), 'u16 0 1': (HALF.astype(np.uint16), 0.5),
    'u16 full': (np.full((60, 60), 65535, np.uint16), 1), 'u16 zeros': (HALF * np.uint16(0), 0),
    'i32 255': (np.full((60, 60), 255, np.int32), 1), 'u8 ones': (HALF * 0 + 1, 1),
    'float ones': (np.full((60, 60), 1, np.float32), 1), 'u8 1 2': (HALF + 1, 0.5),
    'float 0 1': (HALF.astype(np.float32), 0.5), 'one bit': (HALF > 0, 0.5),
    'opacity of black': (OPACITY, 0.5), 'black': (OPACITY[..., :3], 0),
    'opacity of white': (OPACITY + np.array([255, 255, 255, 0], np.uint8), 0.5),
    'opaque white': (OPACITY * 0 + np.array(255, np.uint8), 1),
    'palette': (palette(0, 0, 0, 128, 0, 0), 0.5), 'palette of black': (palette(), 0.5),
    'dark on bright': (palette(255, 255, 255, 90, 0, 0), 0.5)}


@pytest.mark.parametrize('kind', LABELS)
def test_labels_are_read_as_stored(kind, tmp_path):
    content, share = LABELS[kind]
    image = content if isinstance(content, Image.Image) else Image.fromarray(content)
    image.save(tmp_path / 'x.tif')
    assert read_label(tmp_path / 'x.tif').mean() == share
    if kind not in ('float ones', 'float 0 1', 'i32 255'):
        image.save(tmp_path / 'x.png')
        assert read_label(tmp_path / 'x.png').mean() == share


@pytest.mark.parametrize('values', [np.float32([[0, np.nan]]), np.float32([[0, np.inf]]),
                                    np.int32([[0, -1]])])
def test_labels_of_other_numbers_are_refused(values, tmp_path):
    (tmp_path / 'x.tif').write_bytes(tiff(values))
    with pytest.raises(UserError, match='negative or not finite'):
        read_label(tmp_path / 'x.tif')


@pytest.mark.parametrize('factor', [6, 16, 40])
@pytest.mark.parametrize('method', ['BILINEAR', 'BICUBIC', 'LANCZOS'])
def test_outlines_of_enlarged_labels_are_soft_but_other_areas_are_refused(factor, method, tmp_path):
    path, side = tmp_path / 'x.png', 10 * factor
    small = Image.fromarray(np.pad(np.full((5, 6), 255, np.uint8), ((2, 3), (2, 2))))
    large = small.resize((side, side), Image.Resampling[method])
    large.save(path)
    assert read_label(path).mean() == pytest.approx(0.3, abs=0.02)
    (tmp_path / 'x.tif').write_bytes(tiff(np.asarray(large, np.float32) / 255))
    assert read_label(tmp_path / 'x.tif').mean() == pytest.approx(0.3, abs=0.02)
    large.paste(128, (0, 0, side // 10, side // 10))  # another kind, a hundredth of the label
    large.save(path)
    with pytest.raises(UserError, match='areas between'):
        read_label(path)
    rng = np.random.default_rng(0)  # no label at all
    Image.fromarray(rng.integers(0, 255, (side, side), dtype=np.uint8)).save(path)
    with pytest.raises(UserError, match='areas between'):
        read_label(path)


def areas(side: int, *boxes: tuple[int, ...]) -> np.ndarray:
    """A label side×side with boxes (top, left, height, width, value)."""
    label = np.zeros((side, side), np.uint16)
    for top, left, height, width, value in boxes:
        label[top:top + height, left:left + width] = value
    return label


def slice_of_a_head() -> np.ndarray:
    """240×240 with noise of 60 to 120 in an ellipse, 200 to 255 in a lesion."""
    rng, (rows, columns) = np.random.default_rng(0), np.mgrid[:240, :240]
    head = ((rows - 120) / 60) ** 2 + ((columns - 120) / 50) ** 2 < 1
    pixels = head * rng.integers(60, 120, head.shape)
    pixels[100:120, 100:120] = rng.integers(200, 255, (20, 20))
    return pixels.astype(np.uint8)


def in_colors(label: np.ndarray, *colors: int) -> Image.Image:
    image = Image.fromarray(label.astype(np.uint8)).convert('P')
    image.putpalette([*colors, *[0] * (768 - len(colors))])
    return image


LESION = (100, 100, 200, 200, 255)
GRID = [(32 * (k // 16) + 4, 32 * (k % 16) + 4, 16, 16, k + 1) for k in range(256)]
THIRD_VALUES = {
    'void': areas(512, (95, 95, 210, 210, 255), (100, 100, 200, 200, 1)),
    'of 20': areas(512, LESION, (400, 400, 100, 100, 20)),
    'small': areas(512, LESION, (400, 400, 18, 18, 128)),
    'white and blue': np.dstack([areas(512, LESION)] * 2 + [
        areas(512, LESION, (400, 400, 80, 80, 255))]).astype(np.uint8),
    'palette': in_colors(areas(512, (100, 100, 200, 200, 2), (400, 400, 80, 80, 1)),
                         0, 0, 0, 10, 0, 0, 255, 255, 255),
    'many': areas(1024, *[(5 + 50 * k, 10, 30, 30, 100 if k % 2 else 255) for k in range(20)]),
    'instances of 16 bits': areas(512, *GRID),
    'instances': areas(512, *GRID[:255]).astype(np.uint8),
    'one pixel': areas(200, (50, 50, 100, 100, 1), (60, 60, 1, 1, 255)),
    'slice': slice_of_a_head()}


@pytest.mark.parametrize('kind', THIRD_VALUES)
def test_further_values_are_refused_however_small_or_dark(kind, tmp_path):
    label, path = THIRD_VALUES[kind], tmp_path / 'x.png'
    if isinstance(label, np.ndarray):
        label = Image.fromarray(label if label.max() > 255 else label.astype(np.uint8))
    label.save(path)
    with pytest.raises(UserError, match='areas between'):
        read_label(path)


@pytest.mark.parametrize('quality', [5, 30, 75, 100])
def test_noise_of_jpeg_is_no_further_value(quality, tmp_path):
    label = areas(200, (50, 53, 99, 101, 255), (10, 20, 5, 90, 255))
    Image.fromarray(label.astype(np.uint8)).save(tmp_path / 'x.jpg', quality=quality)
    assert read_label(tmp_path / 'x.jpg').mean() == pytest.approx((label > 0).mean(), abs=0.005)


def test_only_decoders_of_the_endings_run(tmp_path):
    Image.new('RGB', (8, 8), (9, 99, 199)).save(tmp_path / 'x.jfif', 'jpeg', quality=100)
    assert image_files.IMAGE_SUFFIXES >= {'.jfif'}
    assert np.asarray(read_image(tmp_path / 'x.jfif'))[0, 0, 2] > 190
    for kind in ('eps', 'ppm', 'tga', 'jpeg2000'):
        Image.new('RGB', (8, 8)).save(tmp_path / 'x.png', kind)
        for read in (read_image, read_label):
            with pytest.raises(UserError, match='cannot identify'):
                read(tmp_path / 'x.png')
    (tmp_path / 'x.dcm').write_bytes(bytes(128) + b'DICM' + bytes(99))
    with pytest.raises(UserError, match='x.dcm: DICOM.*convert it to PNG.*NIfTI'):
        read_image(tmp_path / 'x.dcm')


def test_decoders_say_nothing_of_their_own(tmp_path, caplog):
    path = tmp_path / 'x.tif'
    Image.new('RGB', (8, 8)).save(path)
    entry = struct.pack('<HHI', 277, 3, 1)  # samples per pixel: one short
    content = bytearray(path.read_bytes())
    place = content.index(entry) + len(entry)
    content[place:place + 2] = struct.pack('<H', 2048)
    path.write_bytes(content)
    with pytest.raises(UserError, match='x.tif: cannot be read as an image'):
        read_image(path)
    assert not caplog.records


@pytest.mark.parametrize('mode, ending', [('RGB', 'png'), ('P', 'png'), ('CMYK', 'jpg'),
                                          ('CMYK', 'tif'), ('RGB', 'webp')])
def test_no_metadata_goes_along(mode, ending, tmp_path):
    path = tmp_path / f'x.{ending}'
    image = Image.new('RGB', (8, 6), (200, 20, 20)).convert(mode)
    options = {'transparency': 0} if mode == 'P' else {}
    image.save(path, icc_profile=bytes(3_000_000) if ending == 'png' else b'profile' * 99,
               exif=exif(3), dpi=(72, 72), **options)
    image = read_image(path)
    assert image.info == {} and image.mode == 'RGB'
    image.save(tmp_path / 'y.png')
    content = (tmp_path / 'y.png').read_bytes()
    assert not [kind for kind in (b'iCCP', b'eXIf', b'tRNS', b'pHYs', b'tEXt') if kind in content]


MASKS = ('x_mask.png', 'x_LESION.png', 'x-roi.png', 'x_gt.png', 'x_seg.png', 'x_mask_1.png',
         'masks/1.png', 'y_lesion/x.png', 'z_segmentation.png')
IMAGES = ('x.png', 'photo_lesion.png', 'mask.png', 'roi/1.png', 'flask.png', 'x_1.png')
THUMBNAILS = ('@eaDir/x.png/T.jpg', '#recycle/a.png', 'Thumbs/x.png')


def draw_label(path):
    label = np.zeros((36, 40), np.uint8)
    label[9:20, 9:20] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(label).save(path)


def draw_photo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_images(path.parent, [path.name])


def draw_instances(path):
    label = np.kron(np.arange(72, dtype=np.uint8).reshape(8, 9), np.ones((4, 4), np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(label).save(path)


def draw_slice(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(slice_of_a_head()).save(path)


def draw_few_colors(path):
    draw_photo(path)
    Image.open(path).convert('RGB').quantize(12).save(path)


def draw_bits(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).random((36, 40)) > 0.5).save(path)


def test_what_lies_beside_images(tmp_path):
    paths = [tmp_path / name for name in (*IMAGES, *MASKS, *THUMBNAILS, 's.dcm')]
    for path in paths:
        name = path.relative_to(tmp_path).as_posix()
        if path.suffix != '.dcm':
            (draw_label if name in MASKS else draw_photo)(path)
    left_out = image_files.no_images(tmp_path, paths)
    assert [path for path in paths if path not in left_out] == [tmp_path / name for name in IMAGES]
    assert image_files.counted(left_out) == (
        '8 named as masks are, as x_mask.png, 3 in folders of thumbnails or deleted files, as '
        'T.jpg, 1 labels, as z_segmentation.png, 1 DICOM (convert to PNG or NIfTI), as s.dcm')
    assert set(image_files.no_images(tmp_path, paths, are_masks=True)) == set(paths[-4:])


MASK_NAMES = (
    'mask_x', 'gt_x', 'lesion_x', 'x.mask', 'x (mask)', 'xmask', 'x_mask - Copy', 'x_Mask (1)',
    'x_mask_bin', 'x_mask_final', 'x_mask_rater1', 'x_segmentation_v2', 'x_manual1', 'x_1stHO',
    'x_binary', 'x_contour', 'x_annotation', 'x_truth', 'x_pred', 'Copy of x_mask', 'x_R1_mask',
    *(f'{folder}/x' for folder in (
        'Ground Truth', 'ground-truth', 'GroundTruth', 'manual', 'masks2', 'masks_128', 'labelsTr',
        'SegmentationClass', 'SegmentationObject', 'Masks_png', 'lesions', 'a/binary_masks')))


@pytest.mark.parametrize('draw', [draw_label, draw_photo], ids=['label', 'photo'])
def test_masks_are_known_by_name_and_pixels(draw, tmp_path):
    paths = []
    for index, name in enumerate(MASK_NAMES):
        pair = [tmp_path / f'{index}/x.png', tmp_path / f'{index}/{name}.png']
        draw_photo(pair[0])
        draw(pair[1])
        masks = image_files.no_images(tmp_path / f'{index}', pair)
        paths += [name for path in masks if path == pair[1]]
        assert pair[0] not in masks
    assert paths == (list(MASK_NAMES) if draw is draw_label else [])


@pytest.mark.parametrize('name, draw, is_left_out', [
    ('x_mask', draw_instances, True), ('masks/x', draw_instances, True),
    ('x_lesion', draw_photo, False), ('x lesion', draw_photo, False),
    ('lesion/x', draw_slice, False), ('lesions/3', draw_slice, False),
    ('a_lesion_3', draw_slice, False), ('lesions/a', draw_few_colors, False),
    ('lesions/a', draw_bits, False), ('x_thumb', draw_photo, True), ('tn_x', draw_photo, True),
    ('y_thumb', draw_photo, False), *((f'{folder}/y', draw_photo, True) for folder in (
        'thumb', 'thumbnail', 'Thumbs.db', 'RECYCLER', '#snapshot', '~snapshot', '@tmp',
        '@Recently-Snapshot'))])
def test_one_file_beside_an_image(name, draw, is_left_out, tmp_path):
    paths = [tmp_path / 'x.png', tmp_path / f'{name}.png']
    draw_photo(paths[0])
    draw(paths[1])
    assert list(image_files.no_images(tmp_path, paths)) == paths[1:] * is_left_out


def test_random_trees(stage_1_run):
    checkpoint = stage_1_run.results / 'model1' / 'best.pt'
    assert fuzz_images.run(5, seed=2, checkpoint=checkpoint) == []
