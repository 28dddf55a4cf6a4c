"""A real browser for the tests of pages: Debian's Chromium without a screen."""

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    "--hide-scrollbars",
)

WIDTH_OF_CONTENT = "document.documentElement.scrollWidth"
# Text whose contrast with the background is below the 4.5 that WCAG 2.2 (1.4.3) requires; a canvas converts the
# colours, because it parses every notation.
LOW_CONTRAST = """
(() => {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const luminance = (colour) => {
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = luminance(getComputedStyle(document.body).backgroundColor);
  return [...document.body.querySelectorAll("*:not(script, noscript)")]
    .filter((element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
    .map((element) => [element.innerText, luminance(getComputedStyle(element).color)])
    .map(([text, ink]) => [text, (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05)])
    .filter(([, contrast]) => contrast < 4.5);
})()
"""


class Browser:
    """Headless Chromium with the few functions that the tests need."""

    def __init__(self, profile: Path) -> None:
        options = ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = Chrome(options=options, service=Service(str(DRIVER)))

    def open(self, url: str, *, width: int = 1200, height: int = 900, dark: bool = False, script: bool = True) -> None:
        """Load a page with this viewport (CSS pixels) and discard the previous page's console messages."""
        # Load another page first, so that the previous page stops polling.
        self.driver.get("about:blank")
        self._command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._command("Emulation.setEmulatedMedia", features=[scheme])
        self._command("Emulation.setScriptExecutionDisabled", value=not script)
        self.console()
        self.driver.get(url)

    def text(self, selector: str = "body") -> str:
        """Return the visible text."""
        return str(self.ask(f"document.querySelector({selector!r}).innerText"))

    def ask(self, expression: str) -> Any:
        """Evaluate an expression in the page, even if the page itself may run no script."""
        answer = self._command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def picture(self) -> bytes:
        """Return a screenshot as PNG."""
        return base64.b64decode(self._command("Page.captureScreenshot")["data"])

    def console(self) -> list[str]:
        """Return the console messages since the last call."""
        return [str(entry["message"]) for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def _command(self, name: str, **parameters: object) -> Any:
        return self.driver.execute_cdp_cmd(name, parameters)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("Debian's chromium and chromium-driver are not installed: scripts/install.sh tools")
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.driver.quit()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """The browser; it leaves the page before the page's server stops."""
    yield chromium
    chromium.driver.get("about:blank")
