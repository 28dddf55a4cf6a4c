"""The audit log: who may use the endpoint since when, what the endpoint did, and what ended it."""

import time
from pathlib import Path
from typing import Final

from servekit.serve.books.journal import Journal
from servekit.serve.guard.inside.servekit_guard.key_lines import Key, KeyFileError, shown
from servekit.serve.guard.inside.servekit_guard.keyring import fingerprint, read_key_lines
from servekit.serve.status import State, Status

AUDIT_LOG_NAME: Final = "audit.jsonl"
_LIMIT_BYTES: Final = 5 * 1024**2


class Audit:
    """Writes the audit log in the state folder, at most 5 MiB."""

    def __init__(self, state_dir: Path) -> None:
        self.journal = Journal(state_dir / AUDIT_LOG_NAME, _LIMIT_BYTES)
        self._state: State | None = None
        self._contract_written = False

    def write(self, event: str, **fields: object) -> None:
        """Write one line."""
        self.journal.write(event, fields)

    def take(self, status: Status) -> None:
        """Write a change of the endpoint's state, with its reason: a drain has the signal that asked for it."""
        if status.state is self._state:
            return
        self._state = status.state
        code = {} if status.exit_code is None else {"exit_code": int(status.exit_code)}
        self.write("state", state=status.state, reason=status.reason, **code)
        if status.contract and not self._contract_written:
            self._contract_written = True
            self.write("contract", met=all(item.met for item in status.contract), items=len(status.contract))


class KeyChanges:
    """Writes when keys are added, revoked or expired, or a changed file is refused; names only."""

    def __init__(self, path: Path | None, audit: Audit) -> None:
        """Compare the file at `path` from its first reading on; None: there are no keys."""
        self._path = path
        self._audit = audit
        self._seen: tuple[int, ...] = ()
        self._expired: set[bytes] = set()
        self.keys: dict[bytes, Key] = {}
        """By their hashes."""

    def compare(self, now_s: float) -> None:
        """Compare the file with the last call's."""
        if self._path is None:
            return
        first = not self._seen
        if (seen := fingerprint(self._path)) != self._seen:
            self._seen = seen
            self._read(self._path, "in use" if first else "added")
        for digest, key in self.keys.items():
            if key.expired(now_s) and digest not in self._expired:
                self._expired.add(digest)
                self._audit.write("key expired", **_describe(key))

    def _read(self, path: Path, event: str) -> None:
        try:
            keys = {key.digest: key for key in read_key_lines(path).values()}
        except KeyFileError as error:
            self._audit.write("key file refused", problem=str(error))
            return
        before, self.keys = self.keys, keys
        for digest, key in keys.items():
            if digest not in before:
                self._audit.write(f"key {event}", **_describe(key))
            elif key != before[digest]:
                self._audit.write("key changed", **_describe(key))
        for digest in before.keys() - keys.keys():
            self._audit.write("key revoked", **_describe(before[digest]))
        self._expired &= {digest for digest, key in keys.items() if key.expired(time.time())}


def _describe(key: Key) -> dict[str, object]:
    expires = None if key.expires_s is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(key.expires_s))
    limits = {"expires": expires, "in_flight": key.in_flight, "routes": key.routes}
    return {"name": key.name, "hash": shown(key.digest), **{name: value for name, value in limits.items() if value}}
