"""Reduces an image file to the data of its first picture, before Pillow reads it.

Pillow also reads the rest of a file, at a cost that no limit on pixels covers: a PNG of 4 MB with 3,900 colour profiles
took 20 s to open and 20 s to load, a JPEG with repeated scans takes 13 ms for each scan of 2 kB, and broken Exif data
becomes a 500. vLLM 0.20.2 uses none of it: it decodes the first frame and ignores the Exif rotation
(`multimodal/media/image.py`). So metadata and later frames are removed, and the number of pieces is limited.
"""

import re
from collections.abc import Callable, Iterator
from itertools import islice
from struct import unpack_from

MAX_PIECES = 10_000
"""Chunks, segments and blocks of one file. A PNG of 22 MB in chunks of 8 KiB, as libpng writes them, has 2,800."""
MAX_SCANS = 64
"""Passes over the pixels of a progressive JPEG: about ten are usual, and each costs as much as the first."""

Pieces = Iterator[bytes | bytearray | memoryview]
"""One for each piece of the file, empty for a piece that is removed."""

_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xff]")
"""A marker that ends the pixels before it: not an escaped 0xff, and not a restart marker. The pattern has no
repetition: a file of 0xff alone would be searched again from each of its bytes."""
_JPEG_SEGMENTS = frozenset(range(0xC0, 0xFF)) - set(range(0xD0, 0xDA))
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_COLOURS = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}
"""The application segments that define the colour space, by their first bytes."""
_JPEG_END, _JPEG_SCAN, _JPEG_FILLING = 0xD9, 0xDA, 0xFF
_JPEG_KEPT = _JPEG_FRAMES | {0xC4, 0xCC, 0xDB, 0xDD, _JPEG_SCAN}
"""Frames, tables and scans."""

_PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})

_WEBP_PICTURES = frozenset({b"VP8 ", b"VP8L", b"ANMF"})
_WEBP_KEPT = _WEBP_PICTURES | {b"VP8X", b"ANIM", b"ALPH"}
_WEBP_FLAGS = 0x02 | 0x10
"""Animation and transparency; the other flags announce metadata."""

_GIF_EXTENSION, _GIF_PICTURE, _GIF_END, _GIF_CONTROL = 0x21, 0x2C, 0x3B, 0xF9


def bare_image(data: bytes) -> bytes:
    """Return a PNG, JPEG, WebP or GIF file without metadata and later frames; its first picture is unchanged.

    Raises ValueError for another kind of file, a broken file (struct.error and IndexError when it ends too early),
    and a file in more pieces than an image needs. A truncated picture stays truncated: the decoder rejects it.
    """
    for signature, read in _KINDS:
        if signature.match(data):
            pieces = list(islice(read(memoryview(data)), MAX_PIECES + 1))
            if len(pieces) > MAX_PIECES:
                raise ValueError(f"An image file has more than {MAX_PIECES} chunks.")
            return b"".join(pieces)
    raise ValueError("An image is not a readable PNG, JPEG, WEBP, GIF file.")


def _png(data: memoryview) -> Pieces:
    yield data[:8]
    position = first = 8
    while position + 8 <= len(data):
        length, kind = unpack_from(">I4s", data, position)
        if (kind == b"IHDR") != (position == first):
            raise ValueError("A PNG file must begin with one header.")
        end = position + length + 12
        yield data[position:end] if kind in _PNG_KEPT else b""
        if kind == b"IEND":
            break
        position = end


def _jpeg(data: memoryview) -> Pieces:
    """Pillow and libjpeg parse the header separately: with one frame and no gaps both read the same."""
    yield data[:2]
    position, frames, scans = 2, 0, 0
    while found := _JPEG_MARKER.search(data, position):
        start, marker = found.start(), data[found.start() + 1]
        if marker == _JPEG_END:
            yield data[start : found.end()]
            break
        if marker == _JPEG_FILLING:
            position = start + 1
            yield b""
            continue
        end = found.end() + unpack_from(">H", data, found.end())[0]
        frames += marker in _JPEG_FRAMES
        scans += marker == _JPEG_SCAN
        if marker not in _JPEG_SEGMENTS or frames > 1 or end < found.end() + 2:
            raise ValueError("A JPEG file is broken, or has more than one picture.")
        if scans > MAX_SCANS:
            raise ValueError(f"A JPEG file has more than {MAX_SCANS} scans.")
        if marker == _JPEG_SCAN:
            after = _JPEG_MARKER.search(data, end)
            end = after.start() if after else len(data)
        colours = _JPEG_COLOURS.get(marker)
        has_colours = colours is not None and data[start + 4 : start + 4 + len(colours)] == colours
        yield data[start:end] if has_colours or marker in _JPEG_KEPT else b""
        position = end


def _webp(data: memoryview) -> Pieces:
    header = bytearray(data[:12])
    if 8 + unpack_from("<I", header, 4)[0] > len(data):
        raise ValueError("A WEBP file is truncated.")
    yield header
    position, kept_bytes = 12, 4
    while position + 8 <= len(data):
        kind, length = unpack_from("<4sI", data, position)
        end = position + 8 + length + length % 2
        piece = bytearray(data[position:end]) if kind in _WEBP_KEPT else bytearray()
        if kind == b"VP8X":
            piece[8] &= _WEBP_FLAGS
        kept_bytes += len(piece)
        yield piece
        if kind in _WEBP_PICTURES:
            break
        position = end
    header[4:8] = kept_bytes.to_bytes(4, "little")  # joined only after the last piece


def _gif(data: memoryview) -> Pieces:
    position = 13 + (3 << (data[10] % 8 + 1) if data[10] & 0x80 else 0)
    yield data[:position]
    while position < len(data):
        if data[position] in (_GIF_PICTURE, _GIF_END):
            yield data[position:]  # Pillow reads further only when a later frame is requested
            break
        start, kept = position, data[position] == _GIF_EXTENSION and data[position + 1] == _GIF_CONTROL
        if data[position] == _GIF_EXTENSION:
            position += 2
            while length := data[position]:
                position += 1 + length
                yield b""
        position += 1
        yield data[start:position] if kept else b""


_KINDS: tuple[tuple[re.Pattern[bytes], Callable[[memoryview], Pieces]], ...] = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), _png),
    (re.compile(rb"\xff\xd8\xff"), _jpeg),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), _webp),
    (re.compile(rb"GIF8[79]a"), _gif),
)
