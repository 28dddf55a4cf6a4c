"""What the running engine says of itself against what was planned."""

from typing import Any

import pytest

from servekit.serve.watch.running_contract import broken, compare_contract


def pillow(effective: dict[str, Any], **limits: int) -> str:
    """Return what is said of the engine's image decoder where prompts may hold so much of each kind."""
    arguments: dict[str, Any] = {"limit-mm-per-prompt": dict(limits)} if limits else {}
    items = compare_contract(arguments, "model", effective)
    return broken([item for item in items if item.name == "pillow"])


@pytest.mark.parametrize("version", ["12.2.0", None])
def test_an_old_image_decoder_breaks_the_contract(version: str | None) -> None:
    """Where images may come, a Pillow with published holes, or none that is told, is not served with."""
    wanted = f"pillow: wanted 13.0.0 or newer, the engine runs with {version}"
    assert pillow({"pillow": version}, image=3) == pillow({"pillow": version}) == wanted
    assert pillow({}, audio=0) == "pillow: wanted 13.0.0 or newer, the engine runs with None"


def test_a_recent_image_decoder_keeps_the_contract() -> None:
    """The floor or newer; and without images it does not matter."""
    assert pillow({"pillow": "13.0.0"}, image=3) == pillow({"pillow": "13.2.1"}) == pillow({}, image=0) == ""
