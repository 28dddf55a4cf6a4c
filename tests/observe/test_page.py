"""The status page as sent: complete without a script, and no value can become markup."""

import base64
import hashlib
import itertools
import json
import re
import urllib.request
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from servekit.serve.status import Phase, State
from servekit.serve.watch.running_contract import ContractItem
from servekit.settings import Target

if TYPE_CHECKING:
    from tests.observe.conftest import Site

EVIL = """</title></style></script><script>alert(1)</script><img src=x onerror="alert(2)">'"&amp;\udcff"""


class Page(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.bodies: dict[str, str] = {}
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record a tag."""
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        """Record text."""
        if self.tags and self.tags[-1] in {"script", "style"} and self.tags[-1] not in self.bodies:
            self.bodies[self.tags[-1]] = data
        else:
            self.words += data + " "


def read(site: "Site") -> Page:
    """Fetch the page."""
    with urllib.request.urlopen(site.url, timeout=60) as answer:
        return Page(answer.read().decode())


@pytest.mark.parametrize("state", State)
def test_page_shows_the_state(site: "Site", state: State) -> None:
    """The page from the server shows every state with its reason."""
    site.load(until=Phase.WEIGHTS)
    site.store.enter(state, "this is why", exit_code=7 if state is State.FAILED else None)
    page = read(site)
    phase = " (weights)" if state is State.STARTING else ""
    assert f"{state}{phase} this is why" in " ".join(page.words.split())
    assert ("ends with exit code 7" in page.words) is (state is State.FAILED)


def test_page_shows_contract_and_start(site: "Site") -> None:
    """Before the engine has reported, the contract is pending; later each item shows whether it is met."""
    page = " ".join(read(site).words.split())
    assert "kv-cache-dtype fp8_e4m3 not checked yet open" in page
    assert "limit-mm-per-prompt image 3, audio 0, video 0 not checked yet open" in page
    assert "Deviations None." in page
    site.become_ready()
    site.store.record(contract=(ContractItem("max-num-seqs", 1024, 256), ContractItem("audio limit", 0, None)))
    page = " ".join(read(site).words.split())
    assert "max-num-seqs 1,024 256 not met" in page
    assert "audio limit 0 none not met" in page
    assert "weights 14.9 s" in page
    assert "82.6 s to ready" in page


@pytest.mark.parametrize("target", [Target.CPU])
def test_page_shows_deviations(site: "Site", target: Target) -> None:
    """The page shows a deviation with its reason."""
    assert target is Target.CPU
    page = " ".join(read(site).words.split())
    assert "kv-cache-dtype: auto instead of fp8_e4m3 the CPU engine has no FP8 KV cache" in page


def test_bars_stay_inside(site: "Site") -> None:
    """The bars of the timeline join without gaps from the left edge to the right one."""
    site.become_ready()
    with urllib.request.urlopen(site.url, timeout=60) as answer:
        bars = re.findall(r'<rect x="([\d.]+)" width="([\d.]+)"', answer.read().decode())
    places = [(float(x), float(x) + float(width)) for x, width in bars]
    assert len(places) == 7
    assert places[0][0] == 0
    assert all(start >= before for (before, _), (start, _) in itertools.pairwise(places))
    assert max(end for _, end in places) == pytest.approx(1000, abs=5)


@pytest.mark.parametrize("served_name", [EVIL])
def test_values_stay_text(site: "Site", served_name: str) -> None:
    """Markup in a name, a reason or a contract value adds no element, no attribute and no broken byte."""
    site.become_ready()
    site.store.record(contract=(ContractItem(EVIL, EVIL, [EVIL]),))
    site.store.enter(State.FAILED, EVIL)
    page = read(site)
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert "img" not in page.tags
    assert page.words.count(served_name.encode(errors="backslashreplace").decode()) >= 7


def test_nothing_foreign_and_nothing_inline(site: "Site") -> None:
    """The page loads nothing, has no inline handler or style, and its policy lists exactly its script and its style."""
    site.become_ready()
    page = read(site)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in {"style", "src"}]
    links = [value for name, value in page.attributes if name == "href"]
    assert set(links) == {"data:,", "metrics", "status", "livez", "readyz"}
    assert "//" not in re.sub(r"^\s*//.*$", "", page.bodies["script"] + page.bodies["style"], flags=re.MULTILINE)
    with urllib.request.urlopen(site.url, timeout=60) as answer:
        headers = answer.headers
    policy = headers["Content-Security-Policy"]
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.bodies[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"


def test_page_does_not_ask_the_engine(site: "Site") -> None:
    """The page is rendered from the snapshot alone, so that a hung engine cannot delay it."""
    tokens = site.engine.tokens
    site.engine.tokens_per_reading = 1
    read(site)
    assert site.engine.tokens == tokens


def test_figures_name_metrics_that_exist(site: "Site", root: Path) -> None:
    """Each figure of the page is a metric that docs or the engine's table define, and has that name in the scrape."""
    site.engine.gpu = True
    wanted = re.findall(r'data-(?:metric|limit)="([^"]+)"', (root / "src/servekit/observe/page.html").read_text())
    with urllib.request.urlopen(f"{site.url}metrics", timeout=60) as answer:
        scrape = answer.read().decode()
    assert len(wanted) == 10
    assert [name for name in wanted if not re.search(rf"^{name}[ {{]", scrape, re.MULTILINE)] == []
    with urllib.request.urlopen(f"{site.url}status", timeout=60) as answer:
        assert json.load(answer)["state"] == "starting"
