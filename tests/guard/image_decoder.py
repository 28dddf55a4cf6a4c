"""Makes and decodes image files in the engine's own environment, which has Pillow and vLLM; prints JSON.

usage: python image_decoder.py corpus FOLDER            write every kind of image file
       python image_decoder.py plain|guarded FOLDER     decode them as vLLM alone does, or behind the guard
       python image_decoder.py cut FOLDER               decode the first half of each behind the guard
       python image_decoder.py fuzz FOLDER COUNT SEED   decode broken ones behind the guard

PYTHONPATH must have the guard's folder, and optionally the folder of newer packages before the engine's own.
"""

import hashlib
import importlib
import io
import json
import random
import resource
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Image: Any = importlib.import_module("PIL.Image")
MAX_PIXELS = 33_177_600


def make_corpus(folder: Path) -> None:
    """Write one file of every kind that clients send, each with content in every pixel."""
    folder.mkdir(exist_ok=True)
    for name, data in (*pngs(), *jpegs(), *webps(), *gifs()):
        (folder / name).write_bytes(data)


def picture(mode: str, seed: int = 0) -> Any:
    """Return 61 x 47 pixels of noise and edges."""
    noise = random.Random(seed).randbytes(4 * 8 * 6)
    small = Image.frombytes("RGBA", (8, 6), noise)
    return small.resize((61, 47), Image.Resampling.BICUBIC).convert(mode)


def saved(image: Any, kind: str, **options: Any) -> bytes:
    """Return the file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def exif() -> Any:
    """Return metadata that rotates an image by 90 degrees for readers that apply it."""
    made = Image.Exif()
    made[0x0112], made[0x010E] = 6, "described"
    return made


def pngs() -> Iterator[tuple[str, bytes]]:
    """PNG in each mode; with transparency, metadata, frames."""
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        yield f"{mode}.png", saved(picture(mode), "PNG")
    yield "P-transparent.png", saved(picture("P"), "PNG", transparency=bytes(range(256)))
    yield "RGB-transparent.png", saved(picture("RGB"), "PNG", transparency=picture("RGB").getpixel((5, 5)))
    yield "L-16-bit.png", saved(Image.frombytes("I;16", (16, 16), bytes(range(256)) * 2), "PNG")
    text = importlib.import_module("PIL.PngImagePlugin").PngInfo()
    text.add_text("comment", "a" * 5000, zip=True)
    text.add_itxt("more", "b" * 5000, zip=True)
    yield "metadata.png", saved(picture("RGB"), "PNG", pnginfo=text, exif=exif(), icc_profile=bytes(3000))
    frames = {"save_all": True, "append_images": [picture("RGBA", seed) for seed in range(1, 9)]}
    yield "animated.png", saved(picture("RGBA"), "PNG", **frames)
    yield "animated-default.png", saved(picture("RGBA"), "PNG", default_image=True, **frames)


def jpegs() -> Iterator[tuple[str, bytes]]:
    """JPEG in each mode and encoding; with metadata, a second picture, stray bytes."""
    for mode in ("L", "RGB", "CMYK"):
        yield f"{mode}.jpg", saved(picture(mode), "JPEG", quality=90)
        yield f"{mode}-progressive.jpg", saved(picture(mode), "JPEG", progressive=True)
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        yield f"{subsampling.replace(':', '')}.jpg", saved(picture("RGB"), "JPEG", subsampling=subsampling)
    yield "restarts.jpg", saved(picture("RGB"), "JPEG", restart_marker_blocks=1)
    yield "rotated.jpg", saved(picture("RGB"), "JPEG", exif=exif(), comment=b"c", icc_profile=bytes(100_000))
    frames = {"save_all": True, "append_images": [picture("RGB", 1)]}
    yield "two.mpo.jpg", saved(picture("RGB"), "MPO", **frames)
    plain = saved(picture("RGB"), "JPEG")
    table = plain.index(b"\xff\xdb")
    yield "filled.jpg", plain[:table] + b"\xff\xff\xff" + plain[table:]
    yield "trailed.jpg", plain + b"\xff\xda" * 500


def webps() -> Iterator[tuple[str, bytes]]:
    """WebP, lossy and lossless, with transparency, metadata, frames."""
    for mode in ("RGB", "RGBA"):
        for lossless in (False, True):
            name = f"{mode}-{'lossless' if lossless else 'lossy'}.webp"
            yield name, saved(picture(mode), "WEBP", lossless=lossless)
            yield (
                f"metadata-{name}",
                saved(picture(mode), "WEBP", lossless=lossless, exif=exif(), icc_profile=bytes(99)),
            )
            frames = {"save_all": True, "append_images": [picture(mode, seed) for seed in range(1, 9)]}
            yield f"animated-{name}", saved(picture(mode), "WEBP", lossless=lossless, **frames)


def gifs() -> Iterator[tuple[str, bytes]]:
    """GIF with and without transparency, comment, frames."""
    for mode in ("L", "P", "1"):
        yield f"{mode}.gif", saved(picture(mode), "GIF", interlace=False)
        yield f"{mode}-interlaced.gif", saved(picture(mode), "GIF", interlace=True)
        yield f"{mode}-transparent.gif", saved(picture(mode), "GIF", transparency=1, comment=b"c" * 600)
    frames = {"save_all": True, "append_images": [picture("RGBA", seed) for seed in range(1, 9)], "loop": 0}
    yield "animated.gif", saved(picture("RGBA"), "GIF", **frames)


def loader(kind: str) -> Any:
    """Return vLLM's own loader, or the guard's around it."""
    vllms = importlib.import_module("vllm.multimodal.media").ImageMediaIO()
    if kind == "plain":
        return vllms
    media = importlib.import_module("servekit_guard.images.media")
    return media.CheckedImages(vllms, media.limit_formats(Image), MAX_PIXELS)


def decode(load: Any, folder: Path) -> dict[str, str]:
    """Return mode, size and a hash of the pixels of each file in the folder, or the error."""
    seen = {}
    for path in sorted(folder.iterdir()):
        try:
            image = load.load_bytes(path.read_bytes()).media
            seen[path.name] = f"{image.mode} {image.size} {hashlib.sha256(image.tobytes()).hexdigest()}"
        except Exception as error:  # noqa: BLE001 - every error is reported
            seen[path.name] = repr(error)
    return seen


def fuzz(load: Any, folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Decode `count` broken files; return how many were served and refused, the slowest and the memory they took."""
    chance = random.Random(seed)
    files = [path.read_bytes() for path in sorted(folder.iterdir())]
    served, slowest_s, worst = 0, 0.0, b""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    errors: dict[str, int] = {}
    for _ in range(count):
        data = broken(chance, chance.choice(files))
        (folder.parent / "last").write_bytes(data)  # what a crash leaves behind
        began = time.perf_counter()
        try:
            load.load_bytes(data)
            served += 1
        except Exception as error:  # noqa: BLE001 - every error is reported
            errors[type(error).__name__] = errors.get(type(error).__name__, 0) + 1
        if (took := time.perf_counter() - began) > slowest_s:
            slowest_s, worst = took, data
    (folder.parent / "slowest").write_bytes(worst)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"served": served, "errors": errors, "slowest_s": round(slowest_s, 3), "grown_mib": grown // 1024}


def cut(load: Any, folder: Path) -> dict[str, str]:
    """Return the result for the first half of each file in the folder that contains one picture."""
    halves = folder.parent / "halves"
    halves.mkdir()
    for path in folder.iterdir():
        if "animated" not in path.name:
            data = path.read_bytes()
            (halves / path.name).write_bytes(data[: len(data) // 2])
    return decode(load, halves)


def broken(chance: random.Random, data: bytes) -> bytes:
    """Return the file with one to four defects: bits, bytes, cuts, repeated pieces, large sizes."""
    made = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        if not made:
            break
        at, length = chance.randrange(len(made)), chance.choice((1, 2, 4, 16, 64, 1000))
        injury = chance.randrange(7)
        if injury == 0:
            made[at] ^= 1 << chance.randrange(8)
        elif injury == 1:
            made[at : at + length] = chance.randbytes(length)
        elif injury == 2:
            del made[at : at + length]
        elif injury == 3:
            made[at:at] = made[at : at + length] * chance.choice((1, 2, 50))
        elif injury == 4:
            made[at : at + 2] = chance.choice(
                (b"\xff\xff", b"\0\0", b"\x7f\xff", b"\xff\xd8", b"\xff\xc0", b"\xff\xda")
            )
        elif injury == 5 and len(made) > 64:
            del made[chance.randrange(32, len(made)) :]
        else:
            early = chance.randrange(min(len(made), 40))  # the headers are at the front
            made[early] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
    return bytes(made)


def main() -> None:
    """Run the job that the first argument names."""
    warnings.simplefilter("ignore")
    job, folder = sys.argv[1], Path(sys.argv[2])
    if job == "corpus":
        make_corpus(folder)
    elif job == "cut":
        print(json.dumps(cut(loader("guarded"), folder)))
    elif job == "fuzz":
        print(json.dumps(fuzz(loader("guarded"), folder, int(sys.argv[3]), int(sys.argv[4]))))
    else:
        print(json.dumps(decode(loader(job), folder)))


if __name__ == "__main__":
    main()
