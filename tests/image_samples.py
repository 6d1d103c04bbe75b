"""Image files that Pillow does not write, and files that only look like images."""
import struct
import zlib

import numpy as np


def png_16(values: np.ndarray, clear: bytes = b'', exif: bytes = b'') -> bytes:
    """A PNG of 16 bits a channel: gray H×W, or H×W×2 (with opacity), ×3 or ×4; of a `clear` color,
    with `exif` after the pixels."""
    height, width = values.shape[:2]
    rows = values.astype('>u2').reshape(height, -1)
    color_type = {2: 0, 3: {2: 4, 3: 2, 4: 6}.get(values.shape[-1])}[values.ndim]
    header = struct.pack('>IIBBBBB', width, height, 16, color_type, 0, 0, 0)
    pixels = zlib.compress(b''.join(b'\0' + row.tobytes() for row in rows))
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        for kind, data in ((b'IHDR', header), (b'tRNS', clear), (b'IDAT', pixels), (b'eXIf', exif),
                           (b'IEND', b'')) if data or kind == b'IEND')


def tiff(values: np.ndarray, order: str = '<', orientation: int = 1, separate: bool = False,
         extra: int = 2, colors_are: int | None = None) -> bytes:
    """An uncompressed TIFF of numbers H×W or H×W×C; `extra` 1: colors are multiplied by opacity,
    2: they are not; `separate`: a plane for each channel; `colors_are`: the photometric
    interpretation, 0 white is zero, 5 CMYK."""
    pixels = values.reshape(*values.shape[:2], -1)
    height, width, channels = pixels.shape
    stored = pixels.astype(pixels.dtype.newbyteorder(order))
    data = (stored.transpose(2, 0, 1) if separate else stored).tobytes()
    colors, planes = (3 if channels >= 3 else 1), channels if separate else 1
    colors = channels if colors_are == 5 else colors
    if colors_are is None:
        colors_are = 2 if colors == 3 else 1
    long_tags = {256: [width], 257: [height], 278: [height], 273: [0] * planes,
                 279: [len(data) // planes] * planes}
    tags = {258: [8 * values.itemsize] * channels, 259: [1], 262: [colors_are],
            274: [orientation], 277: [channels], 284: [2 if separate else 1],
            339: [{'u': 1, 'i': 2, 'f': 3}[values.dtype.kind]] * channels, **long_tags}
    if channels > colors:
        tags[338] = [extra] * (channels - colors)
    place = 14 + 12 * len(tags)  # of what does not fit into an entry
    start = place + sum(size for tag, numbers in tags.items()
                        if (size := len(numbers) * (4 if tag in long_tags else 2)) > 4)
    tags[273] = [start + plane * len(data) // planes for plane in range(planes)]
    entries, beyond = b'', b''
    for tag, numbers in sorted(tags.items()):
        kind, letter = (4, 'I') if tag in long_tags else (3, 'H')
        content = struct.pack(f'{order}{len(numbers)}{letter}', *numbers)
        if len(content) > 4:
            beyond, content = beyond + content, struct.pack(f'{order}I', place + len(beyond))
        entries += struct.pack(f'{order}HHI', tag, kind, len(numbers)) + content.ljust(4, b'\0')
    return ((b'II*\0' if order == '<' else b'MM\0*') + struct.pack(f'{order}IH', 8, len(tags))
            + entries + bytes(4) + beyond + data)


def bmp_header(side: int) -> bytes:
    """The beginning of a BMP of side×side px, 24 bits each."""
    return b'BM' + struct.pack('<IIIIiiHHIIiiII', 54, 0, 54, 40, side, side, 1, 24, *[0] * 6)
