"""The proof on a GPU: `python -m benchmarks.gpu STAGE ...`, one stage per command; see README.md in this folder."""

import argparse
import shutil
import sys
from pathlib import Path

from benchmarks.gpu.setting import STAGES, Setting, machine
from benchmarks.gpu.stages import RUN
from benchmarks.gpu.warm_starts import KINDS, STARTS
from tests.harness.endpoint import PHASES


def main() -> None:
    """Run one stage; write its record to OUT/STAGE.json and the logs to OUT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, required=True, help="folder for records and logs")
    parser.add_argument("--w4a16", type=Path, required=True, help="the quantized checkpoint")
    parser.add_argument("--bf16", type=Path, help="the unquantized one, for stage baseline")
    parser.add_argument("--cache", type=Path, required=True, help="SERVEKIT_CACHE_DIR; stage start empties it")
    parser.add_argument("--engine", default="vllm", help="the program")
    parser.add_argument("--engine-python", default=sys.executable, help="a Python that can import vllm")
    parser.add_argument("--target", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--budget-gib", type=float, default=20.2, help="GPU memory that the engine may take")
    parser.add_argument("--within-s", type=float, default=540, help="time limit of the stage in seconds")
    parser.add_argument("--rounds", type=int, default=12, help="most rounds of loads, or of warm starts")
    parser.add_argument("--cores", type=int, help="how many cores the servers of stage images get; all by default")
    parser.add_argument("--starts", nargs="+", default=STARTS, help=f"of stage warm-start: {', '.join(KINDS)}")
    parser.add_argument("--phases", nargs="+", default=PHASES, help="of stage stops")
    parser.add_argument("--flag", action="append", default=[], help="a further flag for servekit")
    parser.add_argument("--quick", action="store_true", help="a rehearsal: everything once, as short as possible")
    options = parser.parse_args()
    options.state = options.out / "state"
    options.out.mkdir(parents=True, exist_ok=True)
    if options.stage == "start":
        shutil.rmtree(options.cache, ignore_errors=True)
    run = Setting(options, options.out)
    run.note("stage", options.stage)
    run.note("machine", machine())
    try:
        RUN[options.stage](run)
    finally:
        run.close()


if __name__ == "__main__":
    main()
