"""Run the real client packages against a demo endpoint: `python -m benchmarks.clients [NAME...]`.

Each is installed into an environment of its own below a temporary folder, the newest release there is. The endpoint is
`servekit serve` with a demo checkpoint on the CPU. Prints the table of docs/clients.md; exit code 1: a client failed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.clients.catalogue import CLIENTS, Client, Place
from benchmarks.endpoint import MODEL, served_by_servekit
from benchmarks.programs import ROOT, working_folder

UV = Path(sys.executable).with_name("uv")
MINUTES = 10
"""Longest time for one client: the largest downloads several GB."""


def main() -> None:
    """Run the chosen clients one after the other."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clients", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"by default all: {', '.join(CLIENTS)}")
    names = parser.parse_args().names or list(CLIENTS)
    if unknown := set(names) - set(CLIENTS):
        parser.error(f"no such client: {', '.join(sorted(unknown))}")
    failed = []
    with working_folder() as top, served_by_servekit(top) as served:
        print("| client | version | what ran | result | installed |\n|---|---|---|---|---|", flush=True)
        for name in names:
            with tempfile.TemporaryDirectory(prefix="servekit-client-") as folder:
                work = Path(folder)
                place = Place(programs_of(CLIENTS[name], work), served.url, served.key, MODEL, top / "model", work)
                row, works = run(name, CLIENTS[name], place)
            print(row, flush=True)
            failed += [] if works else [name]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def programs_of(client: Client, folder: Path) -> Path:
    """Return the folder in which a client's programs will be."""
    return folder / "node_modules" / ".bin" if client.node else folder / "venv" / "bin"


def run(name: str, client: Client, place: Place) -> tuple[str, bool]:
    """Install and run one client; return its row, and whether it worked."""
    if client.node and not shutil.which("npm"):
        return f"| {name} | | {client.what} | not run: Node is not installed here | |", True
    began = time.monotonic()
    try:
        install(client, place)
        installed = f"{time.monotonic() - began:.0f} s, {megabytes(place.work)} MB" if client.packages else ""
        done = subprocess.run(
            place_engine(client.argv(place)),
            cwd=place.work,
            env=environment(place),
            capture_output=True,
            text=True,
            check=True,
            timeout=MINUTES * 60,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(error.stdout, error.stderr, file=sys.stderr)
        return f"| {name} | {version(client, place)} | {client.what} | failed: {type(error).__name__} | |", False
    works = client.says in done.stdout + done.stderr
    if not works:
        print(done.stdout, done.stderr, file=sys.stderr)
    result = "works" if works else f"ended without {client.says!r}"
    return f"| {name} | {version(client, place)} | {client.what} | {result} | {installed} |", works


def install(client: Client, place: Place) -> None:
    """Install a client's packages into the place's folder."""
    if client.node:
        commands = [["npm", "install", "--no-audit", "--no-fund", "--silent", *client.packages]]
    else:
        python = str(place.bin / "python")
        commands = [
            [str(UV), "venv", "-q", "--python", sys.executable, str(place.bin.parent)],
            [str(UV), "pip", "install", "-q", "--python", python, *client.packages],
        ]
    for command in commands if client.packages else ():
        subprocess.run(command, cwd=place.work, check=True, capture_output=True, text=True, timeout=MINUTES * 60)


def place_engine(argv: list[str]) -> list[str]:
    """Return a command with `vllm` as the one in the engine's environment."""
    return [str(ROOT / ".venv-engine" / "bin" / "vllm"), *argv[1:]] if argv[0] == "vllm" else argv


def environment(place: Place) -> dict[str, str]:
    """Return what a client is told in variables; nothing of this process's settings reaches it."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(place.work),
        "LANG": "C.UTF-8",
        "MODEL": place.name,
        "OPENAI_API_KEY": place.key,
        "OPENAI_BASE_URL": f"{place.url}/v1",
    }


def version(client: Client, place: Place) -> str:
    """Return the version of a client's package."""
    if client.node:
        return str(json.loads((place.work / "node_modules" / client.package / "package.json").read_text())["version"])
    if not client.packages:
        return ""
    program = f"import importlib.metadata; print(importlib.metadata.version({client.package!r}))"
    shown = subprocess.run([place.bin / "python", "-c", program], capture_output=True, text=True, check=False)
    return shown.stdout.strip() or "?"


def megabytes(folder: Path) -> int:
    """Return the size of a folder's files."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) // 10**6


main()
