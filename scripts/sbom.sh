#!/usr/bin/env bash
# Write software bills of materials (CycloneDX) from the locks; the same locks give the same bytes.
# usage: scripts/sbom.sh [SOURCE [FOLDER]]   SOURCE: the checkout whose locks to read; FOLDER: where to (default: dist)
set -euo pipefail
cd "$(dirname "$0")/.."
source=${1:-.}
folder=${2:-dist}
mkdir -p "$folder"
# image: what servekit adds to the image; engine-patches: newer packages for the engine; engine-cpu: the CPU engine.
for bill in image:servekit engine-patches:engine-patches engine-cpu:engine-cpu; do
  .venv/bin/cyclonedx-py requirements "$source/requirements/${bill%:*}.txt" --output-reproducible --of JSON \
    -o "$folder/${bill#*:}.cdx.json"
done
