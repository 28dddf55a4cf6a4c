"""What a container's user may do with the files of this host that are mounted for it, by their owner and mode."""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from servekit.preflight.checkpoint.checkpoint_facts import READ_BY_VLLM

DEFAULT_USER: Final = "10001:0"
"""The user of the image."""
READ: Final = 4
WRITE: Final = 2
ENTER: Final = 1


@dataclass(frozen=True)
class ContainerUser:
    """A user of a container: its numbers, and whether it is a root that modes do not bind."""

    uid: int
    gid: int
    groups: frozenset[int]
    unbound: bool

    @classmethod
    def of(cls, service: Mapping[str, Any]) -> "ContainerUser | None":
        """Return the user that a service runs as; None for a name, whose numbers only the image knows."""
        user, _, group = str(service.get("user") or DEFAULT_USER).partition(":")
        if not (user.isdecimal() and (group or "0").isdecimal()):
            return None
        gid = int(group or 0)
        more = {int(each) for each in map(str, service.get("group_add") or ()) if each.isdecimal()}
        dropped = {"ALL", "DAC_OVERRIDE"}.intersection(map(str, service.get("cap_drop") or ()))
        kept = "DAC_OVERRIDE" in (service.get("cap_add") or ())
        return cls(int(user), gid, frozenset({gid, *more}), user == "0" and (kept or not dropped))

    def __str__(self) -> str:
        """Return the user as Docker writes it."""
        return f"{self.uid}:{self.gid}"

    def may(self, status: os.stat_result, need: int) -> bool:
        """Whether owner and mode allow it: `need` is a sum of READ, WRITE and ENTER."""
        shift = 6 if status.st_uid == self.uid else 3 if status.st_gid in self.groups else 0
        return self.unbound or status.st_mode >> shift & need == need

    def denied(self, mounted: Path, inner: Path, need: int) -> Path | None:
        """Return the first path, from the `mounted` folder to `inner` and the files in it, that denies `need`.

        What this process may not look at is left out.
        """
        way = [each for each in reversed((inner, *inner.parents)) if each.is_relative_to(mounted)]
        files = inner.iterdir() if need == READ and os.access(inner, os.R_OK | os.X_OK) and inner.is_dir() else ()
        for path in (*way, *sorted(each for each in files if each.suffix in READ_BY_VLLM)):
            try:
                status = path.stat()
            except OSError:
                continue
            enter = ENTER * stat.S_ISDIR(status.st_mode)
            if not self.may(status, enter if path in inner.parents else need | enter):
                return path
        return None
