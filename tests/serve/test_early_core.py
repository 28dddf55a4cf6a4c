"""An EngineCore that was forked before the server had read anything, with a small `vllm` in place of the real one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from servekit.serve.engine import early_core

VLLM = {
    "__init__.py": "",
    "plugins.py": "import os\ndef load_general_plugins(): exec(os.environ.get('PLUGIN', ''))\n",
    "platforms.py": "class current_platform:\n    is_cuda = staticmethod(lambda: False)\n",
    "v1/__init__.py": "",
    "v1/engine/__init__.py": "",
    "v1/engine/core.py": "import os, sys\nIMPORTED_BY, SERVER_HAS = os.getpid(), 'server_only' in sys.modules\n",
    "processes.py": """
import gc, json, multiprocessing, os, sys
from vllm.v1.engine import core

def report(pipe, code):
    ready = sys.modules.get("servekit_guard.core.ready_tokenizer")
    seen = {"own": core.IMPORTED_BY == os.getpid(), "ready": ready and ready.commands}
    assert gc.isenabled()
    seen |= {"method": os.environ["METHOD"], "argv": sys.argv[1:]}
    os.write(1, (json.dumps(seen) + "\\n").encode())
    sys.exit(code)

def serve():
    import server_only
    assert gc.isenabled()
    os.environ["METHOD"] = "set by the server"
    context = multiprocessing.get_context("spawn")
    codes = []
    for name, code in json.loads(sys.argv[1]):
        process = context.Process(target=report, args=(None, code), name=name)
        process.start()
        process.join()
        codes.append(process.exitcode)
    sys.exit(codes != [code for _, code in json.loads(sys.argv[1])])
""",
    "../server_only.py": "",
    "../servekit_guard/core/ready_tokenizer.py": "commands = []\nprepare = commands.append\n",
    "../vllm-program": "from vllm import processes\nif __name__ == '__main__':\n    processes.serve()\n",
}


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Write the small vLLM; return its program."""
    for name, text in VLLM.items():
        path = (tmp_path / "vllm" / name).resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "vllm-program"


def serve(
    program: Path, *processes: tuple[str, int], runner: str | Path = early_core.__file__, **more: str
) -> list[dict[str, object]]:
    """Run the server, which starts these processes with their exit codes; return what each reports."""
    command = [sys.executable, runner, str(program), json.dumps(processes)]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(program.parent), "PYTHONDONTWRITEBYTECODE": "1", **more}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_first_engine_core_is_the_fork(program: Path) -> None:
    """It has the modules from before the fork, the server's environment and arguments, and its exit code counts."""
    first, second = serve(program, ("EngineCore", 3), ("EngineCore", 0))
    processes = '[["EngineCore", 3], ["EngineCore", 0]]'
    ready = [[str(program), processes]]
    assert first == {"own": False, "ready": ready, "method": "set by the server", "argv": [processes]}
    assert second == first | {"own": True, "ready": None}


def test_other_processes_are_new_pythons(program: Path) -> None:
    """A process of another name does not become the fork, and leaves it for EngineCore."""
    assert [each["own"] for each in serve(program, ("APIServer_0", 0), ("EngineCore", 4))] == [True, False]


@pytest.mark.parametrize(
    "plugin", ["raise ValueError", "raise SystemExit", "os.kill(os.getpid(), 9)"], ids=["raises", "exits", "is killed"]
)
def test_a_fork_that_has_ended_is_replaced(program: Path, plugin: str) -> None:
    """vLLM then starts a new Python, as without servekit."""
    assert [each["own"] for each in serve(program, ("EngineCore", 0), PLUGIN=plugin)] == [True]


def test_another_start_method_has_no_fork(program: Path) -> None:
    """vLLM forks EngineCore itself if the operator says so: a waiting one would only take memory."""
    seen = serve(program, ("EngineCore", 0), VLLM_WORKER_MULTIPROC_METHOD="fork", PLUGIN="os.write(1, b'forked')")
    assert [each["own"] for each in seen] == [True]


def test_a_compatible_driver_needs_a_new_python(program: Path) -> None:
    """The loader reads its folder only as a program starts, so a fork would not find the compatible driver."""
    asked = serve(program, ("EngineCore", 0), VLLM_ENABLE_CUDA_COMPATIBILITY="1")
    assert [each["own"] for each in asked] == [True]


@pytest.mark.parametrize("safe", ["", "1"], ids=["plain", "safe path"])
def test_the_folders_of_the_path_are_those_of_the_program_alone(tmp_path: Path, safe: str) -> None:
    """Python puts the program's folder before them, or with PYTHONSAFEPATH does not: none of them is lost."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "program").write_text("import sys\nprint(sys.path)\n")
    (tmp_path / "bin" / "link").symlink_to("../program")
    environment = {"PYTHONPATH": "/guard", "PYTHONSAFEPATH": safe, "PYTHONDONTWRITEBYTECODE": "1"}
    alone, early = (
        subprocess.run([*words, tmp_path / "bin" / "link"], env=environment, capture_output=True, check=True)
        for words in ([sys.executable], [sys.executable, early_core.__file__])
    )
    assert early.stdout == alone.stdout


def test_a_fork_that_hangs_is_given_up(program: Path) -> None:
    """The server waits for it only so long, and ends it: a lock or a driver must not cost the start."""
    copy = program.parent / "early_core.py"
    copy.write_text(Path(early_core.__file__).read_text().replace("PATIENCE_S = 300.0", "PATIENCE_S = 0.01"))
    hangs = "import time; time.sleep(3600)"
    assert [each["own"] for each in serve(program, ("EngineCore", 0), runner=copy, PLUGIN=hangs)] == [True]


def test_the_program_says_what_is_wrong(program: Path) -> None:
    """An engine that cannot be imported fails as it does alone."""
    (program.parent / "vllm" / "v1" / "engine" / "core.py").write_text("raise ImportError('no torch')")
    command = [sys.executable, early_core.__file__, str(program), "[]"]
    done = subprocess.run(command, env={"PYTHONPATH": str(program.parent)}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ImportError: no torch"


def test_the_server_imports_while_engine_core_starts(program: Path) -> None:
    """What it imports later is there before it asks for it; what cannot be imported waits until it does."""
    broken, later = (program.parent.joinpath("vllm", *name.split(".")[1:]) for name in early_core.LATER[:2])
    for path, text in ((broken, "raise ValueError"), (later, "")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".py").write_text(text)
    processes = program.parent / "vllm" / "processes.py"
    waits = f"    while {early_core.LATER[1]!r} not in sys.modules: time.sleep(0.01)\n    sys.exit("
    processes.write_text("import time\n" + processes.read_text().replace("    sys.exit(codes", waits + "codes"))
    assert [each["own"] for each in serve(program, ("EngineCore", 0))] == [False]


def test_the_fork_ends_with_the_server(program: Path) -> None:
    """A server that starts no EngineCore leaves no process that holds its output open."""
    assert serve(program) == []
