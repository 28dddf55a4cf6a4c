"""The guard with one of its rules taken out, for `python -m benchmarks.killers` only.

`GUARD_WITHOUT` names the fields, comma-separated, whose refusals are passed over: the request then goes on to vLLM.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from servekit.serve.guard.inside.servekit_guard import gate
    from servekit.serve.guard.inside.servekit_guard.engine import Guard
else:
    from servekit_guard import gate
    from servekit_guard.engine import Guard

VARIABLE = "GUARD_WITHOUT"
LEFT_OUT = tuple(os.environ[VARIABLE].split(","))

_objection = gate.objection  # type: ignore[attr-defined]


def objection(*arguments: Any, **named: Any) -> Any:
    """Judge a body as the guard does, and pass over what it says of the fields that are left out."""
    refusal = _objection(*arguments, **named)
    return None if refusal is not None and (refusal.param or "body").startswith(LEFT_OUT) else refusal


gate.objection = objection  # type: ignore[attr-defined]


class Without(Guard):
    """The guard; its rules were changed when this module was loaded."""
