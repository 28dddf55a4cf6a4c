#!/usr/bin/env bash
# A Docker Engine for the container tests on a bare Debian 12 machine, as root, without systemd and without a registry.
# usage: .ci/docker.sh up        install and start Docker Engine, Compose and buildx, and build the tests' images
#        .ci/docker.sh restart   stop the daemon as a service manager does, and start it again
# Builds base images from Debian's packages with the host's certificates inside: for tests only, never publish them.
set -euo pipefail
state=/var/tmp/servekit-ci-docker
base=servekit-ci/debian:bookworm

main() {
  case ${1:-} in
    up)
      packages
      daemon
      images
      ;;
    restart)
      stop
      daemon
      ;;
    *) sed -n '2,4s/^# //p' "$0" >&2; exit 2 ;;
  esac
}

# Debian 12's Docker is too old for start_interval, so these few packages, and no others, come from the next release.
packages() {
  if command -v dockerd mmdebstrap >/dev/null && docker compose version >/dev/null 2>&1 && docker buildx version >/dev/null 2>&1
  then return; fi
  mkdir -p "$state"/{sources,preferences,lists/partial}
  local own=/etc/apt/sources.list.d/debian.sources
  cp "$own" "$state/sources/own.sources"
  awk 'BEGIN { RS = "" } NR == 1' "$own" | sed -E 's/^Suites:.*/Suites: trixie/' >"$state/sources/next.sources"
  printf '%s\n' 'Package: *' 'Pin: release n=trixie' 'Pin-Priority: -1' '' \
    'Package: docker.io docker-cli docker-buildx docker-compose' 'Pin: release n=trixie' 'Pin-Priority: 990' \
    >"$state/preferences/next"
  local apt=(apt-get -q -o "Dir::Etc::sourceparts=$state/sources" -o "Dir::Etc::preferencesparts=$state/preferences"
    -o "Dir::State::lists=$state/lists" -o DPkg::Lock::Timeout=120)
  export DEBIAN_FRONTEND=noninteractive
  "${apt[@]}" update
  "${apt[@]}" install -y --no-install-recommends docker.io docker-cli docker-buildx docker-compose iptables mmdebstrap
}

daemon() {
  if docker info >/dev/null 2>&1; then return; fi
  mkdir -p "$state"
  # A small MTU, because machines inside other networks often have one.
  cat >"$state/daemon.json" <<'J'
{"storage-driver": "overlay2", "mtu": 1400,
 "default-network-opts": {"bridge": {"com.docker.network.driver.mtu": "1400"}}}
J
  setsid dockerd --config-file "$state/daemon.json" >>"$state/dockerd.log" 2>&1 </dev/null &
  echo $! >"$state/dockerd.pid"
  for _ in $(seq 120); do
    if docker info >/dev/null 2>&1; then return; fi
    kill -0 "$(cat "$state/dockerd.pid")" 2>/dev/null || break
    sleep 0.5
  done
  tail -30 "$state/dockerd.log" >&2
  exit 1
}

stop() {
  local pid
  pid=$(cat /var/run/docker.pid)
  kill "$pid"
  for _ in $(seq 480); do
    kill -0 "$pid" 2>/dev/null || return 0
    sleep 0.25
  done
  echo "docker.sh: the daemon did not stop" >&2
  exit 1
}

images() {
  if ! docker image inspect "$base" >/dev/null 2>&1; then
    # $1 is the folder mmdebstrap works in.
    # shellcheck disable=SC2016
    mmdebstrap --variant=minbase --include=ca-certificates --aptopt='Acquire::Check-Valid-Until "false"' \
      --customize-hook='mkdir -p "$1/usr/local/share/ca-certificates"' \
      --customize-hook='cp /usr/local/share/ca-certificates/*.crt "$1/usr/local/share/ca-certificates/" 2>/dev/null || true' \
      --customize-hook='chroot "$1" update-ca-certificates >/dev/null' \
      bookworm - | docker import -c 'CMD ["bash"]' -c 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
      -c 'ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt' - "$base"
  fi
  # Debian's Prometheus and Caddy replace the vendors' images, with the same command line.
  program_image prometheus 'RUN install -d -o 65534 -g 65534 /prometheus
ENTRYPOINT ["/usr/bin/prometheus"]'
  program_image caddy ''
}

program_image() {
  if docker image inspect "servekit-ci/$1" >/dev/null 2>&1; then return; fi
  docker build -q -t "servekit-ci/$1" - <<D
FROM $base
RUN apt-get -q update && apt-get -q install -y --no-install-recommends $1 && rm -rf /var/lib/apt/lists/*
$2
D
}

main "$@"
