"""The launcher does not import the measuring code."""

import subprocess
import sys


def test_serve_imports_nothing_of_measuring() -> None:
    """Nothing that `servekit serve` loads imports `servekit.measure`."""
    program = "import sys, servekit.cli.main, servekit.run; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "servekit.serve.supervisor" in loaded
    assert not [name for name in loaded if name.startswith("servekit.measure")]
