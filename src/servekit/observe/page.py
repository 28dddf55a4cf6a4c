"""The status page on `/`: rendered from the snapshot, so it never waits for the engine."""

import base64
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import resources
from string import Template
from xml.etree.ElementTree import Element, SubElement, tostring

from servekit import ENGINE_VERSION, __version__
from servekit.serve.plan import Plan
from servekit.serve.status import Status


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_PAGE, _STYLE, _SCRIPT = (
    (resources.files(__package__) / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")
)

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        f"script-src {_hash(_SCRIPT)}",
        f"style-src {_hash(_STYLE)}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Allows the one script and the one style sheet of the page by their hashes, and nothing else to run or load."""

_BAR = 1000  # the width of the timeline in its own units


def render_page(plan: Plan, status: Status, *, now: float, wall_s: float) -> bytes:
    """Return the page (HTML, UTF-8) of `status` at the monotonic second `now`, `wall_s` seconds after the epoch.

    The script replaces each part on its own when it changes.
    """
    parts = {
        "name": [_element("span", plan.served_name)],
        "title": [_element("title", f"{status.state} · {plan.served_name}")],
        "state": _state(status),
        "as_of": [_element("span", "As of ", _time(wall_s))],
        "contract": _contract(plan, status),
        "deviations": _deviations(plan),
        "start": _start(status, now),
        "history": _history(status),
        "endpoint": _endpoint(plan, status),
    }
    values = {
        name: "".join(tostring(node, encoding="unicode", method="html") for node in nodes)
        for name, nodes in parts.items()
    }
    # A reason may contain bytes of a path that are not Unicode; the page must still render.
    return Template(_PAGE).substitute(values, style=_STYLE, script=_SCRIPT).encode(errors="backslashreplace")


def _state(status: Status) -> list[Element]:
    phase = f" ({status.phase})" if status.phase else ""
    nodes = [
        _element("p", f"{status.state}{phase}", data_state=status.state.value),
        _element("p", status.detail, class_="reason"),
    ]
    if status.exit_code is not None:
        nodes.append(_element("p", f"servekit ends with exit code {int(status.exit_code)}."))
    return nodes


def _contract(plan: Plan, status: Status) -> list[Element]:
    verdicts = {True: ("met", "met"), False: ("not met", "broken"), None: ("open", "why")}
    rows = [(item.name, item.wanted, _shown(item.got), verdicts[item.met]) for item in status.contract] or [
        (name, wanted, "not checked yet", verdicts[None]) for name, wanted in plan.arguments.contract.items()
    ]
    body = (
        _element(
            "tr",
            _element("th", name, scope="row"),
            _element("td", _element("code", _shown(wanted)), data_label="wanted"),
            _element("td", _element("code", got), data_label="got"),
            _element("td", word, class_=style),
        )
        for name, wanted, got, (word, style) in rows
    )
    titles = (_element("th", title, scope="col") for title in ("item", "wanted", "got", "holds"))
    head = _element("thead", _element("tr", *titles))
    return [_element("table", head, _element("tbody", *body), class_="contract")]


def _deviations(plan: Plan) -> list[Element]:
    items = [
        _element(
            "li",
            _element("p", f"{d.key}: ", _element("code", _shown(d.used)), " instead of ", _element("code", d.wanted)),
            _element("p", d.reason, class_="why"),
        )
        for d in plan.deviations
    ]
    return [_element("ul", *items) if items else _element("p", "None.", class_="quiet")]


def _start(status: Status, now: float) -> list[Element]:
    total_s = status.start_seconds(now)
    scale = _BAR / (total_s or 1)
    body = _element("tbody")
    before_s = 0.0
    for phase, seconds in status.timeline(now).items():
        running = phase is status.phase
        bar = _element("svg", viewBox=f"0 0 {_BAR} 10", preserveAspectRatio="none", aria_hidden="true")
        place = {"x": f"{min(before_s * scale, _BAR - 4):.1f}", "width": f"{max(seconds * scale, 4):.1f}"}
        SubElement(bar, "rect", place, height="10", **{"class": "running" if running else "over"})
        length = f"{seconds:.1f} s{' so far' if running else ''}"
        body.append(_element("tr", _element("th", phase, scope="row"), _element("td", bar), _element("td", length)))
        before_s += seconds
    word = "to ready" if status.was_ready else "so far" if status.over_s is None else "until it ended"
    return [_element("table", body, class_="timeline"), _element("p", f"{total_s:.1f} s {word}", class_="quiet")]


def _history(status: Status) -> list[Element]:
    items = (
        _element(
            "li",
            _element("p", _element("b", each.state), " ", _time(each.time_s)),
            _element("p", each.reason, class_="why"),
        )
        for each in reversed(status.transitions)
    )
    return [_element("ol", *items)]


def _endpoint(plan: Plan, status: Status) -> list[Element]:
    facts = {
        "Address": f"{plan.url}/v1",
        "Model": f"{plan.model}{f' at {status.commit}' if status.commit else ''}",
        "Profile": plan.profile,
        "Target": plan.target,
        "Versions": f"servekit {__version__}, vLLM {ENGINE_VERSION}",
        "Engine process": status.engine_pid if status.engine_pid is not None else "none",
    }
    pairs = (_element("div", _element("dt", name), _element("dd", value)) for name, value in facts.items())
    return [_element("dl", *pairs, class_="facts")]


def _shown(value: object) -> str:
    """Write a value for people: `image 3, audio 0`, not JSON."""
    match value:
        case None | bool():
            return {None: "none", True: "on", False: "off"}[value]
        case int():
            return f"{value:,}"
        case Mapping():
            return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
        case list() | tuple():
            return ", ".join(map(_shown, value))
    return str(value)


def _time(seconds: float) -> Element:
    moment = datetime.fromtimestamp(seconds, UTC)
    return _element("time", f"{moment:%Y-%m-%d %H:%M:%S} UTC", datetime=f"{moment:%Y-%m-%dT%H:%M:%SZ}")


def _element(tag: str, *children: object, **attributes: str) -> Element:
    """Return an element; `class_` and `data_label` stand for class and data-label.

    Text is escaped when the element is written, so nothing that came from outside can become markup.
    """
    node = Element(tag, {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()})
    for child in children:
        if isinstance(child, Element):
            node.append(child)
        elif len(node):
            node[-1].tail = f"{node[-1].tail or ''}{child}"
        else:
            node.text = f"{node.text or ''}{child}"
    return node
