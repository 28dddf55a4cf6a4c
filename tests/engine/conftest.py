"""The real vLLM 0.20.2 on the CPU, started as a user starts it: by the `servekit` command."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import openai
import pytest

from tests.harness.endpoint import SERVEKIT, Endpoint, clean_environment
from tests.harness.server import ENGINE
from tests.harness.shared import share


def make_endpoint(
    cache: Path, *flags: str, environ: dict[str, str] | None = None, program: Sequence[str] = SERVEKIT
) -> Endpoint:
    """Start an endpoint on the embedded demo, with its caches and state in `cache`; return before it is ready."""
    own = {"SERVEKIT_ENGINE": str(ENGINE), "SERVEKIT_CACHE_DIR": str(cache), "SERVEKIT_STATE_DIR": str(cache)}
    settings = clean_environment() | own | (environ or {})
    return Endpoint(["--target", "cpu", *flags], settings, program=program).start()


@pytest.fixture(scope="session")
def engine_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache folder for all tests, so that the demo checkpoint is built only once."""
    assert ENGINE.exists(), f"{ENGINE} is missing: `make install` puts the CPU engine there"
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def serve(engine_cache: Path) -> Iterator[Callable[..., Endpoint]]:
    """Start endpoints for one test; afterwards end them all, and fail if a process is left."""
    started: list[Endpoint] = []

    def start(*flags: str, environ: dict[str, str] | None = None) -> Endpoint:
        started.append(make_endpoint(engine_cache, *flags, environ=environ))
        return started[-1]

    yield start
    for endpoint in started:
        endpoint.finish()


@pytest.fixture(scope="session")
def endpoint(engine_cache: Path) -> Iterator[Endpoint]:
    """One ready endpoint that all serving tests share."""
    with share("endpoint", make_endpoint(engine_cache)) as endpoint:
        endpoint.until_ready()
        yield endpoint


@pytest.fixture(scope="session")
def client(endpoint: Endpoint) -> Iterator[openai.OpenAI]:
    """The official client on the shared endpoint, with retries off, so that a lost connection fails the test."""
    with openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key=endpoint.key, max_retries=0, timeout=60) as client:
        yield client
