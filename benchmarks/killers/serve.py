"""`servekit` with `guard_without.Without` in place of the guard: `python -m benchmarks.killers.serve`.

`KILLERS_BACKEND` names a backend of structured output in place of the one that servekit sets.
"""

import os

from servekit.cli.main import main
from servekit.serve.guard import prepare
from servekit.serve.watch import running_contract

if __name__ == "__main__":
    prepare.MIDDLEWARE = "guard_without.Without"
    if backend := os.environ.get("KILLERS_BACKEND"):
        prepare.STRUCTURED_OUTPUTS_BACKEND = running_contract.STRUCTURED_OUTPUTS_BACKEND = backend  # type: ignore[attr-defined]
    main()
