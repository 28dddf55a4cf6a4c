#!/usr/bin/env bash
# Resolve requirements/*.in into locks with hashes and without index addresses.
# The engine's lock is resolved as of May 2026: later transformers releases cannot load Gemma 4 with vLLM 0.20.2.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/install.sh base
compile=(.venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate
  --custom-compile-command "make lock" --upgrade)
for name in uv build base codecarbon image dev clients fuzz engine-patches router scale; do
  "${compile[@]}" "requirements/$name.in" -o "requirements/$name.txt"
done
"${compile[@]}" requirements/engine-cpu.in --override requirements/engine-cpu.override.txt --exclude-newer 2026-05-12 \
  -o requirements/engine-cpu.txt
recipe=recipes/gemma4-e4b-opt/requirements
"${compile[@]}" "$recipe.in" --exclude-newer 2026-10-15 -o "$recipe.txt"
# lmms-eval with the engine's versions, so that uv's cache holds torch once, and without packages that must be built.
"${compile[@]}" --no-build requirements/eval.in --override requirements/eval.override.txt -c requirements/engine-cpu.txt \
  -o requirements/eval.txt
