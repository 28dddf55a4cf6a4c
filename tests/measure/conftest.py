"""The browser for the report's page."""

from tests.harness.browser import browser, chromium

__all__ = ["browser", "chromium"]
