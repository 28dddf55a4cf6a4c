"""Write the sample in README.md: the output of the command above it.

usage: .venv/bin/python scripts/readme_sample.py [--check] [FILE]

`--check` writes nothing and exits with 1 if FILE does not show what the command prints now.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SAMPLE = re.compile(r"(-->\n```console\n\$ servekit (.*)\n)(?:.*\n)*?(?=```\n<!-- end of sample)")


def main() -> int:
    """Write or compare the sample; the exit status shows whether it was up to date."""
    target = next((Path(word) for word in sys.argv[1:] if not word.startswith("-")), ROOT / "README.md")
    old = target.read_text(encoding="utf-8")
    new = SAMPLE.sub(lambda found: found[1] + output(found[2]), old)
    if "--check" not in sys.argv:
        target.write_text(new, encoding="utf-8")
        return 0
    if new == old and SAMPLE.search(old):
        return 0
    print(f"{target} does not show what servekit prints: run `make docs`", file=sys.stderr)
    return 1


def output(words: str) -> str:
    """Return what `servekit WORDS` prints to a pipe, run in the project's folder."""
    program = [sys.executable, "-m", "servekit.cli.main", *shlex.split(words)]
    done = subprocess.run(program, cwd=ROOT, text=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
