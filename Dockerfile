# servekit on vLLM 0.20.2.
#   docker build -t servekit .                                the endpoint, for one NVIDIA GPU
#   docker build -t servekit:cpu --build-arg ENGINE=cpu .     the same on vLLM's CPU build, to try it out
# The engine's image is pinned by tag; pin it further with BASE_IMAGE=vllm/vllm-openai:v0.20.2@sha256:...
ARG ENGINE=cuda
ARG BASE_IMAGE=vllm/vllm-openai:v0.20.2
ARG CPU_BASE_IMAGE=debian:bookworm-slim

FROM ${BASE_IMAGE} AS engine-cuda

FROM ${CPU_BASE_IMAGE} AS engine-cpu
SHELL ["/bin/bash", "-o", "pipefail", "-ec"]
# Not pinned: Debian soon removes older versions of a package.
# hadolint ignore=DL3008
RUN apt-get -q update \
 && apt-get -q install -y --no-install-recommends ca-certificates libnuma1 python3 python3-venv \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*
COPY requirements/uv.txt requirements/build.txt requirements/engine-cpu.txt /tmp/engine/
COPY engines/cpu /tmp/engine/cpu
# uv runs in a temporary environment; its cache belongs to the builder and is in no layer.
RUN --mount=type=cache,target=/root/.cache \
    python3 -m venv /tmp/uv \
 && /tmp/uv/bin/pip install -q --require-hashes -r /tmp/engine/uv.txt \
 && /tmp/uv/bin/uv venv -q --python "$(command -v python3)" /opt/vllm \
 && export UV_LINK_MODE=copy VIRTUAL_ENV=/opt/vllm \
 && /tmp/uv/bin/uv pip install -q --no-deps --require-hashes -r /tmp/engine/engine-cpu.txt \
 && /tmp/uv/bin/uv pip install -q --no-deps --build-constraints /tmp/engine/build.txt /tmp/engine/cpu \
 && rm -rf /tmp/* /opt/vllm/.lock
ENV PATH=/opt/vllm/bin:$PATH

# One of the two stages above.
# hadolint ignore=DL3006
FROM engine-${ENGINE} AS servekit-packages
# Not the last stage: root installs here, whatever user the engine's image sets.
# hadolint ignore=DL3002
USER 0:0
SHELL ["/bin/bash", "-o", "pipefail", "-ec"]
COPY requirements/uv.txt requirements/build.txt requirements/image.txt requirements/engine-patches.txt \
     /tmp/servekit/requirements/
# An engine image may lack ensurepip, or pip.
RUN { python3 -m venv /tmp/uv \
      && /tmp/uv/bin/pip install -q --no-cache-dir --require-hashes -r /tmp/servekit/requirements/uv.txt; } \
 || { rm -rf /tmp/uv \
      && python3 -m pip install -q --no-cache-dir --target /tmp/uv --require-hashes -r /tmp/servekit/requirements/uv.txt; }
RUN --mount=type=cache,target=/root/.cache \
    /tmp/uv/bin/uv venv -q --python "$(command -v python3)" /opt/servekit \
 && UV_LINK_MODE=copy VIRTUAL_ENV=/opt/servekit /tmp/uv/bin/uv pip install -q \
      --require-hashes -r /tmp/servekit/requirements/image.txt
# Newer packages that precede the engine's own, built for the engine's Python: the last line fails if they are not used.
RUN --mount=type=cache,target=/root/.cache \
    UV_LINK_MODE=copy /tmp/uv/bin/uv pip install -q --python "$(command -v python3)" --target /opt/engine-patches \
      --no-deps --only-binary :all: --require-hashes -r /tmp/servekit/requirements/engine-patches.txt \
 && rm -f /opt/engine-patches/.lock \
 && PYTHONPATH=/opt/engine-patches PYTHONDONTWRITEBYTECODE=1 python3 -c 'import PIL._imaging; print(PIL._imaging.__file__)' \
  | grep -q ^/opt/engine-patches/
COPY pyproject.toml README.md LICENSE /tmp/servekit/
COPY src /tmp/servekit/src
RUN --mount=type=cache,target=/root/.cache \
    UV_LINK_MODE=copy VIRTUAL_ENV=/opt/servekit /tmp/uv/bin/uv pip install -q --no-deps \
      --build-constraints /tmp/servekit/requirements/build.txt /tmp/servekit \
 && rm -f /opt/servekit/.lock

# One of the two stages above.
# hadolint ignore=DL3006
FROM engine-${ENGINE} AS servekit
ARG ENGINE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="servekit" \
      org.opencontainers.image.description="One validated file, one command, one dedicated OpenAI-compatible vLLM endpoint." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 0:0
# Mount points of the volumes: a new volume inherits owner and mode. Any user of group 0 can write to them, so that the
# container can run as another user (`user: 1000:0`); group 0 has no other rights here.
RUN echo "servekit:x:10001:0:servekit:/var/cache/servekit:/usr/sbin/nologin" >>/etc/passwd \
 && install -d -o 10001 -g 0 -m 0770 /var/lib/servekit /var/cache/servekit /models \
 && ln -s /opt/servekit/bin/servekit /usr/local/bin/servekit
COPY --from=servekit-packages /opt/servekit /opt/servekit
COPY --from=servekit-packages /opt/engine-patches /opt/engine-patches
COPY vllm_config.yaml /etc/servekit/
COPY profiles /etc/servekit/profiles
# HOME and USER: the engine's libraries derive cache folders from them, and another user may have no passwd entry.
# PYTHONPYCACHEPREFIX: the engine's packages come without bytecode, and with a read-only root each start would compile them.
ENV HOME=/var/cache/servekit \
    USER=servekit \
    HF_HOME=/models/huggingface \
    PYTHONPYCACHEPREFIX=/var/cache/servekit/bytecode \
    SERVEKIT_TARGET=${ENGINE} \
    SERVEKIT_ENGINE_PATCHES=/opt/engine-patches \
    SERVEKIT_HOST=0.0.0.0 \
    SERVEKIT_PORT=8000 \
    SERVEKIT_OBSERVE_HOST=0.0.0.0 \
    SERVEKIT_OBSERVE_PORT=9400 \
    SERVEKIT_STATE_DIR=/var/lib/servekit \
    SERVEKIT_CACHE_DIR=/var/cache/servekit
WORKDIR /etc/servekit
USER 10001:0
EXPOSE 8000 9400
# The stop grace must be longer than SERVEKIT_DRAIN_S (60) + 10 s: `docker run --stop-timeout 80`; compose.yaml sets it.
STOPSIGNAL SIGTERM
# For SERVEKIT_START_S (1800 s) "not ready" counts as "starting"; after that, three in a row count as "unhealthy".
HEALTHCHECK --start-period=1800s --start-interval=5s --interval=10s --timeout=5s --retries=3 \
    CMD ["/opt/servekit/bin/servekit", "probe", "ready"]
ENTRYPOINT ["/opt/servekit/bin/dumb-init", "--single-child", "--", "/opt/servekit/bin/servekit"]
CMD ["serve"]
