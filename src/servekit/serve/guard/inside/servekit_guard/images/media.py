"""Where images may come from and how large they may be, at vLLM's own extension point for media.

vLLM 0.20.2 (`multimodal/media/connector.py`) fetches `http:` URLs from every host, answers 500 to `file:` URLs, and
leaves the size to Pillow, which rejects images from 179 million pixels on: one PNG of 22 kB just below that took the
server 1.7 GiB and 6 s, three of them 4 GiB. It also runs a whole `data:` URL, image included, through a URL parser on
the event loop: 1 ms for 120 kB, 6 ms for 600 kB.
"""

import asyncio
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from io import BytesIO
from types import SimpleNamespace
from typing import Any

from ..core.handoff import current_request
from .bare_image import bare_image
from .decoded import REQUESTS, Turn

CONNECTOR = "servekit"
"""The name for vLLM's `VLLM_MEDIA_CONNECTOR`."""
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
"""The formats that OpenAI accepts. Pillow knows forty more, and one of them starts Ghostscript."""
MAX_ASPECT_RATIO = 20.0
"""Long side to short side: beyond it an image has more soft tokens than the engine reserved memory for."""


def register(max_image_pixels: int, media_domains: tuple[str, ...]) -> None:
    """Register the connector with vLLM; call this in vLLM's process only."""
    media = importlib.import_module("vllm.multimodal.media")
    threads = importlib.import_module("vllm.multimodal.media.connector").global_thread_pool
    open_image = limit_formats(importlib.import_module("PIL.Image"))
    base: Any = media.MediaConnector
    requests = asyncio.Semaphore(REQUESTS)

    def checked(media_io: Any) -> Any:
        if isinstance(media_io, media.ImageMediaIO):
            return CheckedImages(media_io, open_image, max_image_pixels)
        return media_io

    class Connector(base):  # type: ignore[misc] # vLLM is not installed where this is checked
        """vLLM's connector with a check of the URL and of every image's header before it."""

        def load_from_url(self, url: str, media_io: Any, **options: Any) -> Any:
            check_url(url, media_domains)
            with _errors_as_mistakes():
                return super().load_from_url(url, checked(media_io), **options)

        async def load_from_url_async(self, url: str, media_io: Any, **options: Any) -> Any:
            check_url(url, media_domains)
            with _errors_as_mistakes():
                if (data := data_of(url)) is not None:
                    return await self._load_in_turn(data, checked(media_io))
                return await super().load_from_url_async(url, checked(media_io), **options)

        async def _load_in_turn(self, data: SimpleNamespace, media_io: Any) -> Any:
            """Decode an image sent in the request; images of other URLs never wait here for a slow host."""
            request = current_request()
            turn = request.turn if request else Turn()
            await turn.begin(requests)
            try:
                loaded = await asyncio.get_running_loop().run_in_executor(threads, self._load_data_url, data, media_io)
            except BaseException:
                turn.drop()
                raise
            turn.hold(loaded.media)
            return loaded

    media.MEDIA_CONNECTOR_REGISTRY.register(CONNECTOR)(Connector)


def limit_formats(pillow: Any) -> Any:
    """Restrict `Image.open` to IMAGE_FORMATS for every caller in this process; return the new function.

    pillow: the module `PIL.Image`. vLLM's own loader opens each image again, without a list of formats.
    """
    open_any = pillow.open

    @wraps(open_any)
    def open_image(fp: Any, mode: str = "r", formats: Any = None) -> Any:
        return open_any(fp, mode, [each for each in IMAGE_FORMATS if formats is None or each in formats])

    pillow.open = open_image
    return open_image


@contextmanager
def _errors_as_mistakes(message: str = "An image could not be loaded: {}") -> Iterator[None]:
    """Turn every error of an image into a ValueError: vLLM answers 400 to it, and 500 to other exceptions.

    message: for the client, with the error in place of `{}`. A ValueError keeps its own.
    """
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(message.format(error)) from error


def check_url(url: str, media_domains: tuple[str, ...]) -> None:
    """Raise ValueError unless this is a base64 `data:` URL, or a web URL where web URLs are allowed.

    vLLM itself checks the host of a web URL (`--allowed-media-domains`).
    """
    scheme = _scheme(url)
    if scheme != "data" and not (media_domains and scheme in {"http", "https"}):
        raise ValueError("An image must be sent in the request as 'data:image/...;base64,...'.")


def data_of(url: str) -> SimpleNamespace | None:
    """Return a `data:` URL as vLLM's parser returns it, with `path` as all after the scheme; None for other URLs."""
    return SimpleNamespace(path=url[len("data:") :]) if _scheme(url) == "data" else None


def _scheme(url: str) -> str:
    """Return the scheme when it is one that can be allowed; the rest of the URL, perhaps an image, is not read."""
    return url[: len("https:")].partition(":")[0].lower()


def check_size(width: int, height: int, max_image_pixels: int) -> None:
    """Raise ValueError when an image of this size would cost too much once decoded."""
    if width * height > max_image_pixels:
        raise ValueError(f"An image has {width} x {height} pixels, more than the limit of {max_image_pixels}.")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(f"An image is {width} x {height}: one side is more than {MAX_ASPECT_RATIO:g} times the other.")


class CheckedImages:
    """Wraps one of vLLM's loaders: removes an image's metadata and checks its size before it is decoded."""

    def __init__(self, media_io: Any, open_image: Any, max_image_pixels: int) -> None:
        self._media_io = media_io
        self._open_image = open_image
        self._max_image_pixels = max_image_pixels

    def load_bytes(self, data: bytes) -> Any:
        """Decode an image whose header is acceptable."""
        # Pillow's decoders raise nearly everything on a broken header.
        with _errors_as_mistakes(f"An image is not a readable {', '.join(IMAGE_FORMATS)} file."):
            bare = bare_image(data)
            with self._open_image(BytesIO(bare)) as image:
                width, height = image.size
        check_size(width, height, self._max_image_pixels)
        return self._media_io.load_bytes(bare)

    def load_base64(self, _media_type: str, data: str) -> Any:
        """Decode an image from a `data:` URL; accepts the same base64 as vLLM."""
        try:
            decoded = importlib.import_module("pybase64").b64decode(data, validate=True)
        except ValueError as error:
            raise ValueError(f"An image is not valid base64, without line breaks: {error}.") from error
        return self.load_bytes(decoded)
