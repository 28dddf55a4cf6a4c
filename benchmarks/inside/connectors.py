"""Loads one image through vLLM's media connector and through servekit's, alternating; `benchmarks/images.py` runs it.

Runs under the engine's Python with the guard's folder on PYTHONPATH; the argument is the number of rounds. Prints one
JSON object: for each kind of image and each connector the milliseconds of CPU time that one image took on the event
loop, and on all threads together, round by round.
"""

import asyncio
import base64
import importlib
import io
import json
import sys
import time
from collections import defaultdict
from typing import Any

SIDE_PIXELS = 448
IMAGES = 40
"""Loaded in each round, one after the other."""


def main() -> None:
    """Measure and print."""
    guard: Any = importlib.import_module("servekit_guard.images.media")
    guard.register(1 << 26, ())
    media: Any = importlib.import_module("vllm.multimodal.media")
    registered = {"vllm": "http", "servekit": guard.CONNECTOR}
    connectors = {name: media.MEDIA_CONNECTOR_REGISTRY.load(known_as) for name, known_as in registered.items()}
    taken: dict[str, Any] = {}
    for kind in ("JPEG", "PNG"):
        url = noise(kind)
        rounds: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
        for number in range(int(sys.argv[1]) + 1):
            for name in sorted(connectors, reverse=number % 2 == 0):
                spent_ms = asyncio.run(load(connectors[name], media.ImageMediaIO, url))
                if number:  # the first round imports modules
                    rounds[name].append(spent_ms)
        taken[kind] = {"bytes": len(url), **rounds}
    print(json.dumps(taken))


async def load(connector: Any, make_io: Any, url: str) -> tuple[float, float]:
    """Return the milliseconds of one image: on this thread, and on all threads."""
    began_s = time.thread_time(), time.process_time()
    for _ in range(IMAGES):
        await connector.load_from_url_async(url, make_io())
    spent_s = time.thread_time() - began_s[0], time.process_time() - began_s[1]
    return 1000 * spent_s[0] / IMAGES, 1000 * spent_s[1] / IMAGES


def noise(kind: str) -> str:
    """Return a `data:` URL of an image of noise, which no format can compress."""
    numpy: Any = importlib.import_module("numpy")
    image: Any = importlib.import_module("PIL.Image")
    pixels = numpy.random.default_rng(0).integers(0, 256, (SIDE_PIXELS, SIDE_PIXELS, 3), dtype=numpy.uint8)
    written = io.BytesIO()
    image.fromarray(pixels).save(written, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(written.getvalue()).decode()}"


if __name__ == "__main__":
    main()
