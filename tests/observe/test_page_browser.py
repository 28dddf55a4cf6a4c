"""The status page in a real browser: it follows the endpoint, fits a phone, runs no injected code, shows its age."""

import base64
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from servekit.serve.status import Phase, State
from servekit.serve.watch.running_contract import ContractItem
from tests.harness.browser import LOW_CONTRAST, WIDTH_OF_CONTENT

if TYPE_CHECKING:
    from tests.harness.browser import Browser
    from tests.observe.conftest import Site

Eventually = Callable[..., None]

EVIL = """</title><script>document.documentElement.dataset.ran = "1"</script><img src="x" onerror="document.documentElement.dataset.ran = '2'">"""  # noqa: E501 - one value


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("state", State)
def test_page_in_every_state(
    site: "Site", browser: "Browser", eventually: Eventually, state: State, width: int, *, dark: bool
) -> None:
    """State, reason, contract and figures are readable on a phone and a desktop, light and dark, without errors."""
    site.become_ready()
    site.store.record(
        contract=(*site.store.read().contract, ContractItem("a-key-with-a-long-name", "x" * 60, "y" * 60))
    )
    site.store.enter(state, "a reason with /a/long/path/" + "x" * 100)
    browser.open(site.url, width=width, height=740, dark=dark)
    eventually(lambda: "37" in browser.text(".figures"), what="the figures")
    text = browser.text()
    assert browser.text("[data-state]") == state
    assert "a reason with /a/long/path/" in text
    for words in ("41.8 %", "of 2,048", "unauthorized 9, too busy 5", "kv-cache-dtype", "not met", "weights", "14.9 s"):
        assert words in text
    assert "GPU" not in browser.text(".figures"), "absent is not zero"
    assert browser.ask(WIDTH_OF_CONTENT) == width
    assert browser.ask("document.title") == f"{state} · gemma4-E4B-opt"
    assert browser.ask(LOW_CONTRAST) == []
    assert browser.console() == []


def test_page_follows_the_endpoint(site: "Site", browser: "Browser", eventually: Eventually) -> None:
    """A change of state appears in the open page, its title and contract, and in a live region for screen readers."""
    site.load(until=Phase.WEIGHTS)
    browser.open(site.url)
    assert browser.text("[data-state]") == "starting (weights)"
    assert "not checked yet" in browser.text(".contract")
    browser.ask("void (window.opened = true)")
    site.become_ready()
    eventually(lambda: browser.text("[data-state]") == "ready", what="the change")
    assert "not checked yet" not in browser.text(".contract")
    assert " s to ready" in browser.text()
    assert browser.ask("document.title") == "ready · gemma4-E4B-opt"
    assert browser.ask("document.querySelector('[data-state]').closest('[aria-live]').ariaLive") == "polite"
    assert browser.ask("window.opened"), "the page was not loaded anew"
    assert browser.console() == []


def test_page_tells_rates(site: "Site", browser: "Browser", eventually: Eventually) -> None:
    """The page derives tokens per second from the counter; without the engine it shows no values and a note."""
    site.become_ready()
    site.engine.gpu = True
    site.engine.tokens_per_reading = 4000
    browser.open(site.url)
    box = "[data-metric='vllm:generation_tokens_total'] dd"
    eventually(lambda: browser.text(box).strip() not in {"", "…"}, what="a rate")
    assert 1000 < int(browser.text(box).strip().replace(",", "")) <= 2000
    assert "68 W" in browser.text(".figures")
    assert "206.3 Wh" in browser.text(".figures")
    site.engine.up = False
    eventually(lambda: "The engine reports no metrics." in browser.text("#note"), what="the note")
    assert browser.text(".figures").strip() == ""
    assert browser.console() == []


def test_hung_engine_does_not_delay_the_state(site: "Site", browser: "Browser", eventually: Eventually) -> None:
    """While the engine delays a scrape, the state still updates within a tick, and the old figures disappear."""
    site.become_ready()
    browser.open(site.url)
    eventually(lambda: "37" in browser.text(".figures"), what="the figures")
    site.engine.answers.clear()
    site.store.enter(State.FAILED, "the engine hung")
    eventually(lambda: browser.text("[data-state]") == "failed", what="the change")
    eventually(lambda: browser.text(".figures").strip() == "", what="the end of the figures")
    assert browser.text("#note") == "No metrics."
    site.engine.answers.set()
    eventually(lambda: "37" in browser.text(".figures"), what="the figures again")


@pytest.mark.parametrize("served_name", [EVIL])
def test_injected_script_does_not_run(
    site: "Site", browser: "Browser", eventually: Eventually, served_name: str
) -> None:
    """Markup in a name, a reason or a contract value is shown as text, on load and when the script updates it."""
    site.store.enter(State.STARTING, served_name)
    browser.open(site.url)
    assert served_name in browser.text()
    site.store.record(contract=(ContractItem(served_name, served_name, served_name),))
    site.store.enter(State.FAILED, served_name)
    eventually(lambda: browser.text("[data-state]") == "failed", what="the change")
    assert served_name in browser.text(".contract")
    assert browser.ask("document.querySelectorAll('img').length") == 0
    assert browser.ask("document.documentElement.dataset.ran === undefined")
    assert browser.console() == []


def test_policy_stops_what_slips_through(site: "Site", browser: "Browser", eventually: Eventually) -> None:
    """Even if markup got in, the policy would still run and load none of it."""
    browser.open(site.url)
    browser.ask("""
        const script = document.createElement("script");
        script.append("document.documentElement.dataset.ran = 1");
        const image = Object.assign(document.createElement("img"), { src: "http://127.0.0.1:9/x.png" });
        document.body.append(script, image);
    """)
    assert browser.ask("document.documentElement.dataset.ran === undefined")
    eventually(lambda: "Loading the image" in "".join(browser.console()), what="the refusal")


def test_page_ages_openly(site: "Site", browser: "Browser", eventually: Eventually) -> None:
    """When servekit is gone the page shows since when, shows no figure as live, and recovers when it is back."""
    site.become_ready()
    browser.open(site.url)
    eventually(lambda: "37" in browser.text(".figures"), what="the figures")
    site.server.__exit__()
    eventually(lambda: browser.text("[data-state]") == "no answer", what="the notice")
    assert "No answer since 20" in browser.text(".now")
    assert "The last known state was: ready." in browser.text(".now")
    assert browser.text(".figures").strip() == ""
    assert browser.ask("document.title") == "no answer · gemma4-E4B-opt"
    assert browser.ask(LOW_CONTRAST) == []
    with site.server_again():
        eventually(lambda: browser.text("[data-state]") == "ready", what="the recovery")
        eventually(lambda: "37" in browser.text(".figures"), what="the figures")
        assert browser.ask("document.title") == "ready · gemma4-E4B-opt"
        browser.driver.get("about:blank")


def test_page_without_a_script(site: "Site", browser: "Browser") -> None:
    """Without scripts the page shows the state at one moment, and a link to the figures."""
    site.become_ready()
    browser.open(site.url, script=False)
    text = browser.text()
    assert "ready\n" in text
    assert "As of 20" in text
    assert "Live values need JavaScript" in text
    assert "82.6 s to ready" in text
    assert browser.console() == []


def test_picture_for_the_docs(site: "Site", browser: "Browser", eventually: Eventually, tmp_path: Path) -> None:
    """The picture in docs is a screenshot of the page: STATUS_PAGE_PNG=docs/status-page.png writes it there."""
    site.become_ready()
    site.engine.gpu = True
    site.engine.tokens_per_reading = 2714
    pictures = []
    for width, height, dark in ((1040, 1130, False), (360, 1130, True)):
        browser.open(site.url, width=width, height=height, dark=dark)
        eventually(lambda: "out, per s\n1," in browser.text(".figures"), what="a rate")
        pictures.append(base64.b64encode(browser.picture()).decode())
    sheet = tmp_path / "sheet.html"
    images = "".join(f'<img alt="" src="data:image/png;base64,{picture}">' for picture in pictures)
    style = "display: flex; gap: 24px; align-items: start; margin: 0; padding: 24px; background: #c9ced4; width: 1424px"
    sheet.write_text(f'<!doctype html><body style="{style}">{images}')
    browser.open(sheet.as_uri(), width=1472, height=1178)
    picture = browser.picture()
    Path(os.environ.get("STATUS_PAGE_PNG", tmp_path / "status-page.png")).write_bytes(picture)
    assert len(picture) > 20_000
