"""Runs under the engine's Python: whether transformers and tokenizers read what stands in each line.

A line is a JSON list of a file's name and its content; the answer is a line `true` or `false` for each.
"""

import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["TRANSFORMERS_VERBOSITY"] = "critical"


def main() -> None:
    """Answer each line."""
    tokenizer: Any = importlib.import_module("tokenizers").Tokenizer
    config: Any = importlib.import_module("transformers").AutoConfig
    folder = Path(tempfile.mkdtemp())
    for line in sys.stdin:
        name, content = json.loads(line)
        (folder / name).write_text(json.dumps(content))
        try:
            if name == "config.json":
                config.from_pretrained(folder)
            else:
                tokenizer.from_file(str(folder / name))
        except BaseException:  # noqa: BLE001 - tokenizers panics with a BaseException
            print("false")
        else:
            print("true")


if __name__ == "__main__":
    main()
