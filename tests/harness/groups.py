"""Which tests go to one worker of pytest-xdist: those that share an engine, or the Docker Engine.

A worker starts such an engine once, and `tests/conftest.py` stops it after the last of its tests. The scheduler knows
only a test's id, so the id determines the group. (xdist's own `xdist_group` marks get lost with pytest 9.2, because
xdist looks for them in an attribute that nodes no longer have.)
"""

from typing import TYPE_CHECKING

from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    import pytest
    from xdist.remote import Producer

CONTAINER, WIDE, DEMO, GUARDED = "container", "wide_endpoint", "endpoint", "engine"
"""The slowest first; for an engine, the name of its fixture."""
_OWN_STARTS = ("tests/engine/test_lifecycle.py", "tests/engine/test_drain.py", "tests/faults/")
"""Each of these tests starts its own engine, which takes minutes in all: any free worker may run them."""


def group_of(nodeid: str) -> str:
    """Return the name of a test's group: a shared engine, a file, or the test alone."""
    file, _, name = nodeid.partition("::")
    if file.startswith("tests/container/"):
        return CONTAINER
    if file.startswith("tests/engine/killers/"):
        return WIDE if "[wide" in name else DEMO
    if file in {"tests/engine/test_serving.py", "tests/engine/test_eval.py"} or file.startswith(
        "tests/engine/clients/"
    ):
        return DEMO
    if file.startswith("tests/guard/"):
        return GUARDED
    return nodeid if file.startswith(_OWN_STARTS) else file


def rank_of(nodeid: str) -> int:
    """Return a test's rank in the order of the run: the slowest groups, then other engines, then everything else."""
    group = group_of(nodeid)
    shared = (CONTAINER, WIDE, DEMO, GUARDED)
    if group in shared:
        return shared.index(group)
    return len(shared) + (not nodeid.startswith(("tests/engine/", "tests/faults/test_faults.py::test_fault[real-")))


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Hand out groups in the order in which they were collected."""

    def __init__(self, config: "pytest.Config", log: "Producer") -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
