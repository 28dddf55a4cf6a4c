#!/usr/bin/env bash
# Build a release into dist/: the wheel, three software bills of materials (CycloneDX) and SHA256SUMS.
# usage: scripts/dist.sh [REF [FOLDER]]   REF: the tag to build (default: HEAD's tag); FOLDER: where to (default: dist)
# The build takes REF's files, not the working tree's, and its commit's date: two builds of a REF give the same bytes.
set -euo pipefail
cd "$(dirname "$0")/.."
ref=${1:-$(git describe --exact-match --tags HEAD 2>/dev/null || true)}
folder=${2:-dist}
if [[ -z $ref ]]; then
  echo "dist: HEAD has no tag; tag it, or name what to build: make dist REF=v0.1.0" >&2
  exit 2
fi
scripts/install.sh dev
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct "$ref")
export SOURCE_DATE_EPOCH
source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT
git archive "$ref" | tar -x -C "$source"
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$source/src/servekit/__init__.py")
if git show-ref --quiet "refs/tags/$ref" && [[ $ref != "v$version" ]]; then
  echo "dist: the tag is $ref, src/servekit/__init__.py says $version; the tag must be v$version" >&2
  exit 2
fi
mkdir -p "$folder"
rm -f "$folder"/servekit-*.whl "$folder"/*.cdx.json "$folder/SHA256SUMS"
.venv/bin/uv build -q --wheel --python .venv/bin/python --build-constraints "$source/requirements/build.txt" \
  --out-dir "$folder" "$source"
rm -f "$folder/.gitignore"
scripts/sbom.sh "$source" "$folder"
(cd "$folder" && sha256sum servekit-*.whl ./*.cdx.json | sed 's| \./| |' >SHA256SUMS)
echo "dist: $ref in $folder/" >&2
