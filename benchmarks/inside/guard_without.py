"""The guard without some of its rules, for `python -m benchmarks.killers` only.

`GUARD_WITHOUT` names them, comma-separated: fields, whose every value then passes, or parts of the guard.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from servekit.serve.guard.inside.servekit_guard import vllm_patches
    from servekit.serve.guard.inside.servekit_guard.body import check, fields, parse
    from servekit.serve.guard.inside.servekit_guard.body.verdicts import Passed
    from servekit.serve.guard.inside.servekit_guard.core import handoff
    from servekit.serve.guard.inside.servekit_guard.entry import Guard
else:
    from servekit_guard import vllm_patches
    from servekit_guard.body import check, fields, parse
    from servekit_guard.body.verdicts import Passed
    from servekit_guard.core import handoff
    from servekit_guard.entry import Guard


def nothing(*_arguments: Any) -> None:
    """Accept everything."""


async def call(method: Any, *arguments: Any, **named: Any) -> Any:
    """Call vLLM's own method."""
    return await method(*arguments, **named)


PARTS: dict[str, tuple[Any, str, Any]] = {
    "@admission": (handoff, "admit", nothing),
    "@half": (parse, "_has_lone_surrogate", nothing),
    "@parts": (check, "_check_part", nothing),
    "@placeless": (vllm_patches, "answer_images_without_a_place", call),
    "@size": (parse, "_has_too_many_values", nothing),
    "@structure": (check, "_check_structure", nothing),
    "@sequences": (check, "MAX_SEQUENCES", 10**9),
    "@structured": (check, "check_structured", nothing),
}
"""The parts that can be removed besides fields: the module, the name in it, and the replacement."""


def take_out(name: str) -> None:
    """Remove one rule; raises LookupError when no field and no part has that name."""
    if name in PARTS:
        module, attribute, instead = PARTS[name]
        getattr(module, attribute)
        setattr(module, attribute, instead)
        return
    routes = [rules for rules in fields.ROUTES.values() if name in rules]
    if not routes:
        raise LookupError(f"{name} is not a field and not a part of the guard")
    for rules in routes:
        rules[name] = Passed("removed")


for each in filter(None, os.environ["GUARD_WITHOUT"].split(",")):
    take_out(each)


class Without(Guard):
    """The guard; loading this module changed its rules."""
