"""`servekit` with `guard_without.Without` in place of the guard: `python -m benchmarks.killers.serve`."""

from servekit.cli import main
from servekit.serve.guard import prepare

if __name__ == "__main__":
    prepare.MIDDLEWARE = "guard_without.Without"
    main()
