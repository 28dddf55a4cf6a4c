"""What remains of an image file before Pillow reads it: its first picture, in a limited number of pieces."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servekit.serve.guard.inside.servekit_guard.images.bare_image import MAX_PIECES, MAX_SCANS, bare_image

PNG, WEBP, GIF, JPEG = b"\x89PNG\r\n\x1a\n", b"WEBP", b"GIF89a", b"\xff\xd8"
END = b"\xff\xd9"
LARGE = 20_000_000


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    """Return a PNG chunk; its checksum is not checked here."""
    return struct.pack(">I", len(content)) + kind + content + b"sum!"


def segment(marker: int, content: bytes = b"") -> bytes:
    """Return a JPEG segment."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a WebP file."""
    body = WEBP + b"".join(
        kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2) for kind, content in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


HEADER, DATA = chunk(b"IHDR", bytes(13)), chunk(b"IDAT", b"pixels")
FRAME, SCAN = segment(0xC0, bytes(15)), segment(0xDA, bytes(10)) + b"pixels\xff\0\xff\xd0pixels"


def test_a_png_keeps_its_pixels() -> None:
    """Palette, transparency and pixels stay; profiles, text, Exif, frames and trailing data are removed."""
    kept = (HEADER, chunk(b"PLTE", b"abc"), chunk(b"tRNS", b"a"), DATA, DATA)
    others = [chunk(kind, b"x" * 99) for kind in (b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"eXIf", b"acTL", b"fdAT")]
    mixed = b"".join(piece for pair in zip(kept, others, strict=False) for piece in pair)
    end = chunk(b"IEND")
    assert bare_image(PNG + mixed + b"".join(others) + end + b"more") == PNG + b"".join(kept) + end


def test_a_png_has_one_header() -> None:
    """A second header, or one that is not the first chunk, could give Pillow a size that was not checked."""
    for chunks in ((HEADER, HEADER, DATA), (DATA, HEADER), (chunk(b"tEXt"), HEADER, DATA)):
        with pytest.raises(ValueError, match="one header"):
            bare_image(PNG + b"".join(chunks))


def test_a_jpeg_keeps_its_pixels() -> None:
    """Frame, tables, colour spaces and scans stay; Exif, profiles, comments and stray bytes are removed."""
    jfif, adobe = segment(0xE0, b"JFIF\0" + bytes(9)), segment(0xEE, b"Adobe" + bytes(7))
    table, huffman = segment(0xDB, bytes(65)), segment(0xC4, bytes(20))
    exif, profile, comment = (segment(marker, b"x" * 500) for marker in (0xE1, 0xE2, 0xFE))
    thumbnail = segment(0xE0, b"JFXX\0" + JPEG)
    mixed = jfif + thumbnail + exif + b"junk" + adobe + profile + comment + table + b"\xff\xff" + huffman + FRAME + SCAN
    assert bare_image(JPEG + mixed + END + JPEG + FRAME) == JPEG + jfif + adobe + table + huffman + FRAME + SCAN + END
    assert bare_image(JPEG + FRAME + SCAN) == JPEG + FRAME + SCAN


@pytest.mark.advisory("CVE-2026-112403")
@pytest.mark.parametrize(
    "broken",
    [
        FRAME + FRAME + SCAN,
        FRAME + SCAN + segment(0xC2, bytes(15)),
        FRAME + JPEG + SCAN,
        FRAME + SCAN + segment(0x42),
        b"\xff\xc0\0\1",
    ],
)
def test_a_jpeg_has_one_frame(broken: bytes) -> None:
    """Two frames could differ in size, and the decoder could write beyond the memory allocated for the first."""
    with pytest.raises(ValueError, match="more than one picture"):
        bare_image(JPEG + broken)


def test_scans_are_bounded() -> None:
    """Each scan of a progressive JPEG is a pass over all pixels, at 20 bytes."""
    assert bare_image(JPEG + FRAME + SCAN * MAX_SCANS + END)
    with pytest.raises(ValueError, match="scans"):
        bare_image(JPEG + FRAME + SCAN * (MAX_SCANS + 1) + END)


def test_a_webp_keeps_its_first_picture() -> None:
    """Metadata and later frames are removed, also from the header's flags, and the file's size field is corrected."""
    header, first = (b"VP8X", b"\x3e" + bytes(9)), (b"ANMF", b"odd")
    more = [(kind, b"x" * 99) for kind in (b"ICCP", b"EXIF", b"XMP ")]
    expected = riff((b"VP8X", b"\x12" + bytes(9)), (b"ANIM", bytes(6)), first)
    assert bare_image(riff(header, more[0], (b"ANIM", bytes(6)), first, first, *more)) == expected
    assert bare_image(riff((b"VP8L", b"abcd"), more[1]) + b"behind") == riff((b"VP8L", b"abcd"))


def test_a_truncated_webp_is_refused() -> None:
    """A file is refused when it is shorter than its header says."""
    with pytest.raises(ValueError, match="truncated"):
        bare_image(riff((b"VP8L", b"abcd"))[:-1])


def test_a_gif_keeps_its_first_picture() -> None:
    """Comments and other extensions are removed; palettes, transparency and all from the first picture on stay."""
    control, comment = b"!\xf9\4abcd\0", b"!\xfe\5hello\5again\0"
    for head in (GIF + bytes(7), GIF + b"abcd\x81ab" + bytes(12)):
        assert bare_image(head + comment + control + comment + b",picture") == head + control + b",picture"
    assert bare_image(GIF + bytes(7) + comment + b";,picture") == GIF + bytes(7) + b";,picture"


@pytest.mark.parametrize(
    "file",
    [
        PNG + HEADER + chunk(b"IDAT") * MAX_PIECES,
        JPEG + segment(0xFE) * (MAX_PIECES + 1),
        JPEG + b"\xff" * LARGE,
        JPEG + FRAME + SCAN + b"\xff" * LARGE,
        riff(*[(b"EXIF", b"")] * (MAX_PIECES + 1)),
        GIF + bytes(7) + b"!\xfe" + b"\1a" * LARGE,
        GIF + bytes(LARGE),
    ],
    ids=["png", "jpeg", "jpeg-filling", "jpeg-behind-a-scan", "webp", "gif-comment", "gif-nothing"],
)
def test_pieces_are_bounded(file: bytes) -> None:
    """A file in more pieces than an image needs is refused at the limit, however long it is."""
    with pytest.raises(ValueError, match=f"more than {MAX_PIECES} chunks"):
        bare_image(file)


@pytest.mark.parametrize(
    "file", [b"", b"BM", b"II*\0", b"%!PS-Adobe", b"RIFF....WAVE", b"GIF88a", b"\xff\xd8", b"<svg"]
)
def test_another_kind_is_refused(file: bytes) -> None:
    """Only the four kinds are accepted, recognised by their first bytes."""
    with pytest.raises(ValueError, match="not a readable"):
        bare_image(file)


@given(st.sampled_from([PNG, JPEG + b"\xff", b"RIFF\0\0\0\0WEBP", GIF]), st.binary(max_size=300))
def test_any_bytes_are_read(start: bytes, rest: bytes) -> None:
    """For any bytes after the signature, the result is never longer than the input, or the file is refused."""
    with contextlib.suppress(ValueError, IndexError, struct.error):
        assert len(bare_image(start + rest)) <= len(start + rest)
