"""Two endpoints for the killers: the embedded demo, and a tiny model with the real model's vocabulary."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from servekit.demo.build import demo_directory, ensure_demo_model
from servekit.demo.sizes import SIZES, Size
from tests.conftest import ROOT
from tests.engine.conftest import make_endpoint
from tests.engine.killers.case import Target
from tests.harness.endpoint import SERVEKIT, Endpoint
from tests.harness.shared import share

WIDE_SEQUENCES = 32
"""The start warms the sampler up with this many rows of 262,144 logits: the profile's 1,024 take a minute on a CPU."""


def start_wide(
    cache: Path, *flags: str, environ: dict[str, str] | None = None, program: Sequence[str] = SERVEKIT
) -> Endpoint:
    """Start an endpoint on a demo with a vocabulary of 262,144; return before it is ready."""
    profile = cache / "wide.yaml"
    text = (ROOT / "vllm_config.yaml").read_text(encoding="utf-8")
    profile.write_text(re.sub(r"(?m)^max-num-seqs: \d+", f"max-num-seqs: {WIDE_SEQUENCES}", text), encoding="utf-8")
    model = ensure_demo_model(cache, size="tiny-262k")
    own = ("--config", str(profile), "--deviate", "max-num-seqs", "--model", str(model), "--served-name", "wide")
    return make_endpoint(cache, *own, *flags, environ=environ, program=program)


def target_of(endpoint: Endpoint, cache: Path, *, wide: bool) -> Target:
    """Return an endpoint as a client knows it."""
    size: Size = "tiny-262k" if wide else "tiny"
    folder = str(demo_directory(cache, size=size))
    name = "wide" if wide else "gemma4-demo"
    return Target(endpoint.port, endpoint.key, name, SIZES[size].text.vocabulary, folder)


@pytest.fixture(scope="session")
def wide_endpoint(engine_cache: Path) -> Iterator[Endpoint]:
    """One ready endpoint with the real vocabulary, shared by all tests that need one."""
    with share("wide_endpoint", start_wide(engine_cache)) as endpoint:
        endpoint.until_ready()
        yield endpoint


@pytest.fixture(scope="session", params=["demo", "wide"])
def which(request: pytest.FixtureRequest) -> str:
    """The endpoint under attack: both, one after the other."""
    return str(request.param)


@pytest.fixture(scope="session")
def attacked(which: str, request: pytest.FixtureRequest) -> Endpoint:
    """Yield the endpoint under attack."""
    endpoint = request.getfixturevalue("endpoint" if which == "demo" else "wide_endpoint")
    assert isinstance(endpoint, Endpoint)
    return endpoint


@pytest.fixture(scope="session")
def target(which: str, attacked: Endpoint, engine_cache: Path) -> Target:
    """Return the endpoint under attack as a client knows it."""
    return target_of(attacked, engine_cache, wide=which == "wide")
