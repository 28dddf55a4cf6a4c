"""The guard with rules taken out, for `python -m benchmarks.killers` only.

`GUARD_WITHOUT` names what is taken out, comma-separated: fields, whose every value then passes, or parts of the guard.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from servekit.serve.guard.inside.servekit_guard import client_mistakes as mistakes
    from servekit.serve.guard.inside.servekit_guard.body import check, fields, parse
    from servekit.serve.guard.inside.servekit_guard.body.verdicts import Passed
    from servekit.serve.guard.inside.servekit_guard.core import handoff as passage
    from servekit.serve.guard.inside.servekit_guard.entry import Guard
else:
    from servekit_guard import client_mistakes as mistakes
    from servekit_guard.body import check, fields, parse
    from servekit_guard.body.verdicts import Passed
    from servekit_guard.core import handoff as passage
    from servekit_guard.entry import Guard


def nothing(*_arguments: Any) -> None:
    """Object to nothing."""


PARTS: dict[str, tuple[Any, str, Any]] = {
    "@admission": (passage, "admit", nothing),
    "@half": (parse, "_has_half_a_sign", nothing),
    "@parts": (check, "_check_part", nothing),
    "@placeless": (mistakes, "answer_images_without_a_place", nothing),
    "@size": (parse, "_has_too_many_values", nothing),
    "@structure": (check, "_check_structure", nothing),
    "@sequences": (check, "_check_sequences", nothing),
    "@structured": (check, "check_structured", nothing),
}
"""What can be taken out beside fields: where it is, its name there, and what takes its place."""


def take_out(name: str) -> None:
    """Take out one rule; raises LookupError where no field and no part has that name."""
    if name in PARTS:
        module, attribute, instead = PARTS[name]
        getattr(module, attribute)
        setattr(module, attribute, instead)
        return
    routes = [rules for rules in fields.ROUTES.values() if name in rules]
    if not routes:
        raise LookupError(f"{name} is no field and no part of the guard")
    for rules in routes:
        rules[name] = Passed("taken out")


for each in filter(None, os.environ["GUARD_WITHOUT"].split(",")):
    take_out(each)


class Without(Guard):
    """The guard; its rules were changed when this module was loaded."""
