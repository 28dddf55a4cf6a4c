"""An endpoint started with `servekit serve`, as a user starts it; the kernel chooses its observe port."""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from servekit.serve.guard.keys import load_keys, own_key_file
from tests.harness.http import get
from tests.harness.ports import free_port
from tests.harness.server import Server

SERVEKIT = ("-m", "servekit.cli.main")
PHASES = ("preflight", "imports", "engine", "weights", "compile", "warm-up", "verify")
"""The phases of a start, as /status names them."""
ROLES = {"VLLM::EngineCore": "core", "VLLM::Worker": "worker", "keeper.py": "keeper", " serve ": "server"}
"""Text in the command line of each engine process; the keeper's command line also contains the server's."""
_OBSERVE = re.compile(r"health, status and metrics on (http://[^\s\"]+)")
_BEGIN_S = 30
"""servekit opens its observe port within a second; allow for five times as many programs on the core."""


class Endpoint(Server):
    """A `servekit serve`, and the answers of its own server."""

    def __init__(
        self,
        flags: Sequence[str],
        environ: Mapping[str, str],
        *,
        port: int | None = None,
        program: Sequence[str] = SERVEKIT,
        model: str = "",
        log: Path | None = None,
    ) -> None:
        port = free_port() if port is None else port
        super().__init__([sys.executable, *program, "serve"], environ, port, model=model, log=log)
        self.flags = list(flags)
        self.wanted_observe_port = 0
        """0: the kernel chooses a port, and the log names it."""

    def start(self) -> Self:
        """Start servekit with its flags."""
        self.argv += ["--port", str(self.port), "--observe-port", str(self.wanted_observe_port), *self.flags]
        return super().start()

    @property
    def state_dir(self) -> Path:
        """The folder of the key and of other files of one run."""
        return Path(self.environ["SERVEKIT_STATE_DIR"])

    @property
    def observe_url(self) -> str:
        """The address of servekit's own server, once the log names it; raises HarnessError if it never does."""
        self.until(lambda: self.find_observe_url() is not None, "observe port", _BEGIN_S)
        return str(self.find_observe_url())

    @property
    def observe_port(self) -> int:
        """The port of servekit's own server, once the log names it."""
        return int(self.observe_url.rpartition(":")[2])

    def find_observe_url(self) -> str | None:
        """Return the address of servekit's own server, or None until the log names it."""
        if self.wanted_observe_port:
            return f"http://127.0.0.1:{self.wanted_observe_port}"
        found = (_OBSERVE.search(line) for line in list(self.lines))
        return next((match[1] for match in found if match), None)

    def observe(self, path: str, timeout_s: float = 10) -> tuple[int, str]:
        """Return status and body from servekit's own server; status 0 if it does not answer."""
        url = self.find_observe_url()
        return get(f"{url}{path}", timeout_s) if url else (0, "")

    def is_ready(self) -> bool:
        """Return whether the readiness probe is green."""
        return self.observe("/readyz")[0] == 200

    def status(self) -> dict[str, Any]:
        """Return /status, or an empty object if it does not answer."""
        code, body = self.observe("/status")
        return dict(json.loads(body)) if code else {}

    @property
    def key(self) -> str:
        """The key that servekit generated for the clients."""
        return load_keys(own_key_file(self.state_dir))[0]

    def close(self) -> None:
        """Kill servekit, whose keeper then ends everything else; raises HarnessError if a process survives."""
        self.finish()

    def roles(self) -> dict[str, int]:
        """Return the engine's process ids by role: keeper, server, core, worker, and any others."""
        found: dict[str, int] = {}
        for pid, words in self.processes().items():
            found.setdefault(
                next((role for sign, role in ROLES.items() if sign in words), f"other {pid}: {words}"), pid
            )
        return found


def clean_environment(**more: str) -> dict[str, str]:
    """Return this environment without servekit's settings, with `more` added."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SERVEKIT_")} | more
