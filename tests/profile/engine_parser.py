"""Parses command lines of `vllm` with vLLM's own parser: runs with the engine's Python, JSON in and out."""

import contextlib
import io
import json
import os
import sys
from importlib import import_module

os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
flexible = import_module("vllm.utils.argparse_utils").FlexibleArgumentParser
serve = import_module("vllm.entrypoints.cli.serve").ServeSubcommand()

parser = flexible()
serve.subparser_init(parser.add_subparsers(dest="subparser"))


def parse(line: list[str]) -> dict[str, object]:
    """Return every value that vLLM would use, or its error message for the command line."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            values: dict[str, object] = vars(parser.parse_args(line))
            return values
    except SystemExit:
        return {"error": errors.getvalue()[-500:]}
    except Exception as error:  # noqa: BLE001  the test checks whatever vLLM raises
        return {"error": repr(error)}


def plain(value: object) -> object:
    """Make vLLM's own objects comparable."""
    return sorted(value) if isinstance(value, set) else repr(value)


for request in sys.stdin:
    answer = json.dumps([parse(line) for line in json.loads(request)], default=plain)
    print(f"\nparsed: {answer}", flush=True)
