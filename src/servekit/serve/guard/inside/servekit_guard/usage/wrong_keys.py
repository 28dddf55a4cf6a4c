"""401s by the hash of the key that was sent, for those that come again and again: an application with an old key.

Guessed keys differ from each other, so they never get a series of their own.
"""

import hashlib
from collections import Counter

from ..key_lines import shown

OFTEN = 20
"""401s after which a wrong key is reported by its hash."""
MOST = 64
"""Keys that are counted at the same time; at most as many are reported."""


class WrongKeys:
    """Counts 401s."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._others = 0

    def count(self, presented: bytes | None) -> None:
        """Count a 401; None: no key was sent."""
        name = "" if presented is None else shown(hashlib.sha256(presented).digest())
        if name and name not in self._counts and len(self._counts) >= MOST:
            for each in [each for each, count in self._counts.items() if count < OFTEN]:
                self._others += self._counts.pop(each)
        if not name or (name not in self._counts and len(self._counts) >= MOST):
            self._others += 1
        else:
            self._counts[name] += 1

    def read(self) -> dict[str, int]:
        """Return the 401s of each key that was sent often, and of all the others under an empty name.

        The first ones of a key stay with the others: a counter that falls looks to Prometheus like a restart.
        """
        often = {name: count - OFTEN + 1 for name, count in self._counts.items() if count >= OFTEN}
        return {"": self._others + self._counts.total() - sum(often.values()), **often}
