"""Write docs/requests.md: the guard's verdict on every field that vLLM's request models have.

usage: .venv/bin/python scripts/requests_page.py [--check] [FILE]

`--check` writes nothing and exits with 1 if FILE differs from what the code gives now.
"""

import json
import sys
from pathlib import Path

from servekit.serve.guard.inside.servekit_guard.body.fields import PASSED_INSIDE, REFUSED_IN_PARTS, ROUTES
from servekit.serve.guard.inside.servekit_guard.body.verdicts import Passed, Refused, Rule

DOCS = Path(__file__).parent.parent / "docs"
HEAD = """\
# Request fields

The guard's verdict on every field of vLLM {vllm}'s request models on the allowed routes: *passed*, *bounded* or
*refused* (400). The guard passes a field that vLLM does not know, because vLLM ignores it. `make docs` writes this
page from `servekit_guard/body/fields.py`; the list of fields is vLLM's own (`make request-fields`), and a test fails
for a field without a verdict. A body has at most 20,000 objects and lists, 400,000 values and 64 levels; NaN and
infinities are refused everywhere. Structured output, logprobs and images have additional bounds:
[security.md](security.md).
"""


def main() -> int:
    """Write or compare the page; the exit status shows whether it was up to date."""
    target = next((Path(word) for word in sys.argv[1:] if not word.startswith("-")), DOCS / "requests.md")
    if "--check" not in sys.argv:
        target.write_text(page(), encoding="utf-8")
        return 0
    if target.is_file() and target.read_text(encoding="utf-8") == page():
        return 0
    print(f"{target} differs from what the code says: run `make docs`", file=sys.stderr)
    return 1


def page() -> str:
    """Return the page's text."""
    table = json.loads((DOCS / "request_fields.json").read_text(encoding="utf-8"))
    parts = [HEAD.format(vllm=table["vllm"])]
    for route, fields in table["routes"].items():
        parts += [f"## {route}\n", "| field | verdict | why |\n|---|---|---|"]
        rules = ROUTES[route]
        parts += [f"| `{name}` | {verdict(rules[name])} | {rules[name].why} |" for name in sorted(fields)]
        parts.append("")
    parts += ["## Inside messages, parts, tools and formats\n", "| fields | verdict | why |\n|---|---|---|"]
    parts += [f"| `{name}` | refused | {why} |" for name, why in REFUSED_IN_PARTS.items()]
    parts += [
        f"| {', '.join(f'`{name}`' for name in names.split())} | passed | {why} |"
        for why, names in PASSED_INSIDE.items()
    ]
    return "\n".join(parts) + "\n"


def verdict(rule: Rule) -> str:
    """Return a rule as a table cell."""
    if isinstance(rule, (Passed, Refused)):
        return type(rule).__name__.lower()
    low, high = getattr(rule, "low", None), getattr(rule, "high", None)
    if low is not None and high is not None:
        return f"bounded: {low:,} to {high:,}"
    counts = [
        f"{count:,} {what}"
        for name, what in (("max_items", "entries"), ("max_chars", "characters"))
        if (count := getattr(rule, name, None))
    ]
    return f"bounded: {' of '.join(counts)}" if counts else "bounded"


if __name__ == "__main__":
    sys.exit(main())
