"""What the hub says about a model of which the cache lacks something; its own client asks, in the engine's Python."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from servekit.preflight.findings import Finding, error, note, warning
from servekit.preflight.hub.hub_model import HubModel, amount
from servekit.preflight.hub.hub_program import MARK

ASK_S: Final = 25.0
"""The client waits 10 s for each of two answers; its imports take a second, more on a cold disk."""

_PERMANENT: Final = {
    "absent": "hub-absent",
    "gated": "hub-gated",
    "token": "hub-token",
    "denied": "hub-denied",
    "revision": "hub-revision",
    "proxy": "hub-proxy",
    "answer": "hub-answer",
    "disk": "hub-disk",
    "client": "hub-client",
}
"""Findings for the problems of hub_program that another try does not mend."""


@dataclass(frozen=True)
class HubAnswer:
    """What preflight reports, and the bytes that a download would add to the cache."""

    findings: tuple[Finding, ...]
    missing_bytes: int = 0


def ask_hub(model: HubModel, environ: Mapping[str, str]) -> HubAnswer:
    """Ask the hub about what is missing of `model`; an answer that may come later is a warning."""
    where = f"in the cache {model.repository.parent}"
    if model.offline:
        held = f"only {amount(model.cached_bytes)} of it are" if model.cached_bytes else "not"
        return HubAnswer(
            (
                error(
                    "hub-offline",
                    f"{held} {where}, and offline mode forbids a download",
                    subject=model.name,
                    remedy="download it on a machine with a network and mount that cache, or give a folder",
                ),
            )
        )
    if not model.python:
        return HubAnswer((_download(model, f"not whole {where}: the engine downloads it during the start"), _unasked()))
    report = _ask(model, environ)
    if "commit" in report:
        total, missing = report["total"], report["total"] - report["bytes"]
        held = f"{amount(total - missing)} of {amount(total)} are" if total > missing else "not"
        text = f"{held} {where}: the start downloads {amount(missing)}"
        return HubAnswer((_download(model, text),), missing)
    if name := _PERMANENT.get(report["problem"]):
        return HubAnswer((error(name, report["message"], subject=model.name, remedy=report["remedy"]),))
    text = f"not whole {where}, and the hub could not be asked; the start tries again: {report['message']}"
    return HubAnswer((warning("hub-unreachable", text, subject=model.name, remedy=report["remedy"]),))


def _ask(model: HubModel, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the reports of hub_program, the later ones over the earlier ones."""
    unanswered = {"problem": "network", "remedy": "check the network"}
    try:
        done = subprocess.run(
            model.program("list"), env=dict(environ), capture_output=True, text=True, check=False, timeout=ASK_S
        )
    except subprocess.TimeoutExpired:
        return unanswered | {"message": f"no answer within {ASK_S:g} s"}
    except OSError as problem:
        return unanswered | {"message": str(problem)}
    reports: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        if MARK in line:
            reports |= json.loads(line.partition(MARK)[2])
    last = (done.stderr.splitlines() or ["no output"])[-1]
    return reports if reports.keys() & {"commit", "problem"} else unanswered | {"message": last}


def _download(model: HubModel, text: str) -> Finding:
    return note("hub-download", text, subject=model.name)


def _unasked() -> Finding:
    return note(
        "hub-unasked",
        "no Python with the hub's client: preflight could not ask the hub for the model and its size",
        subject="--engine",
        remedy="give vLLM's own program with --engine or SERVEKIT_ENGINE",
    )
