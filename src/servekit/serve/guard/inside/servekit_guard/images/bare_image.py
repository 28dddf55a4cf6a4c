"""Image files reduced to what their first picture is decoded from, before Pillow sees them.

Pillow reads everything else in a file as well, and that costs what no limit on pixels bounds: a PNG of 4 MB with 3,900
colour profiles took 20 s to open and 20 s to load, a JPEG whose scans repeat takes 13 ms for each of 2 kB, and broken
Exif data becomes a 500. vLLM 0.20.2 uses none of it: it takes the first frame and turns no image by its Exif data
(`multimodal/media/image.py`). So metadata and later frames go, and the number of pieces is bounded.
"""

import re
from collections.abc import Callable, Iterator
from itertools import islice
from struct import unpack_from

MAX_PIECES = 10_000
"""Chunks, segments and blocks of one file. A PNG of 22 MB in chunks of 8 KiB, as libpng writes them, has 2,800."""
MAX_SCANS = 64
"""Passes over the pixels of a progressive JPEG: usual are about ten, and each costs as the first one does."""

Pieces = Iterator[bytes | bytearray | memoryview]
"""One for each piece read, empty for what is left out."""

_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xff]")
"""A marker that ends the pixels before it: not an escaped 0xff and none of the restart markers. No repetition in it:
a file of nothing but 0xff would be searched again from each of its bytes."""
_JPEG_SEGMENTS = frozenset(range(0xC0, 0xFF)) - set(range(0xD0, 0xDA))
_JPEG_TABLES = frozenset({0xC4, 0xCC, 0xDB, 0xDD})
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_COLOURS = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}
"""The application segments that decide what the numbers mean, by what they begin with."""
_JPEG_END, _JPEG_SCAN, _JPEG_FILLING = 0xD9, 0xDA, 0xFF

_PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})

_WEBP_PICTURES = frozenset({b"VP8 ", b"VP8L", b"ANMF"})
_WEBP_KEPT = _WEBP_PICTURES | {b"VP8X", b"ANIM", b"ALPH"}
_WEBP_FLAGS = 0x02 | 0x10
"""Animation and transparency; the others announce metadata."""

_GIF_EXTENSION, _GIF_PICTURE, _GIF_END, _GIF_CONTROL = 0x21, 0x2C, 0x3B, 0xF9


def bare_image(data: bytes) -> bytes:
    """Return a PNG, JPEG, WebP or GIF file without metadata and without later frames; its first picture is the same.

    Raises ValueError for another kind of file, a broken one (struct.error and IndexError where it ends too early),
    and one in more pieces than an image needs. A truncated picture stays truncated, for the decoder to refuse.
    """
    for signature, read in _KINDS:
        if signature.match(data):
            pieces = list(islice(read(memoryview(data)), MAX_PIECES + 1))
            if len(pieces) > MAX_PIECES:
                message = f"An image file has more than {MAX_PIECES} chunks."
                raise ValueError(message)
            return b"".join(pieces)
    raise ValueError("An image is not a readable PNG, JPEG, WEBP, GIF file.")


def _png(data: memoryview) -> Pieces:
    yield data[:8]
    position = first = 8
    while position + 8 <= len(data):
        length, kind = unpack_from(">I4s", data, position)
        if (kind == b"IHDR") != (position == first):
            raise ValueError("A PNG file does not begin with its one header.")
        end = position + length + 12
        yield data[position:end] if kind in _PNG_KEPT else b""
        if kind == b"IEND":
            break
        position = end


def _jpeg(data: memoryview) -> Pieces:
    """Pillow and libjpeg each read the header for themselves: with one frame and no gaps they read the same."""
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
            raise ValueError("A JPEG file is broken, or holds more than one picture.")
        if scans > MAX_SCANS:
            message = f"A JPEG file has more than {MAX_SCANS} scans."
            raise ValueError(message)
        if marker == _JPEG_SCAN:
            after = _JPEG_MARKER.search(data, end)
            end = after.start() if after else len(data)
        colours = _JPEG_COLOURS.get(marker)
        kept = marker in _JPEG_TABLES or marker in _JPEG_FRAMES or marker == _JPEG_SCAN
        kept = kept or (colours is not None and bytes(data[start + 4 : start + 4 + len(colours)]) == colours)
        yield data[start:end] if kept else b""
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
            yield data[position:]  # Pillow reads on only where a later frame is asked for
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
