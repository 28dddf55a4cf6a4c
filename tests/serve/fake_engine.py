"""A fake `vllm serve` that provokes faults; without a fault it behaves like vLLM 0.20.2.

usage: fake_engine.py serve MODEL --served-model-name NAME --host HOST --port PORT [--FAULT [VALUE]] [anything else]

It prints the lines by which servekit recognises the phases of a start, answers /health, /v1/models, /v1/completions and
/metrics, finishes the running requests on SIGTERM, and exits with 0. Its faults:

  --load-s S            load for S seconds before it listens
  --lose-sigterm        ignore SIGTERM while it loads, as vLLM does while it initialises
  --ignore-sigterm      ignore SIGTERM always
  --never-listen        load forever
  --fail-with TEXT      print a traceback that ends in TEXT while loading, then vLLM's own last lines, and exit with 1
  --end-loading         end while it loads, as set by --exit-code or --die-by
  --exit-after S        exit S seconds after its warm-up, with --exit-code (0 by default)
  --die-by SIGNAL       kill itself with this signal number instead, after --exit-after
  --sick-after S        answer /health with 503 from S seconds after its warm-up, and keep running
  --sick                answer /health with 503 always
  --slow-health-s S     take S seconds for each answer of /health, once it has generated a token
  --mute-metrics-after S    never answer /metrics from S seconds after its warm-up
  --wedge               never generate a token
  --complain            print an exception that it survives, with each token but the first
  --complain-loading    print an exception that it survives while it loads
  --late-s S            delay each request by S seconds before it reaches the core; a request still on its way at
                        SIGTERM gets an empty answer, as with vLLM 0.20.2
  --deaf-to-drain       never answer servekit's request at the beginning of a drain, and refuse nothing
  --no-guard            answer servekit's own routes with 404
  --crash-on-sigterm    kill itself with SIGSEGV on SIGTERM
  --wrong-name          serve another model name than the requested one
  --no-token            answer a generation with no token
  --no-batch            answer a request with several prompts with 500
  --slow-request-s S    take S seconds for each generation
  --wedge-after S       generate no token and change no counter from S seconds after its warm-up, except for a batch
                        of prompts, which servekit sends before it is ready; /health stays 200
  --runs-with-kv-cache-dtype X    report this cache type, whatever the arguments set
  --runs-with JSON      report these other values too, whatever the arguments set; may be repeated
  --orphan PIDFILE      leave a child in its own session that never ends; write its pid to PIDFILE
  --flood N             print N long lines and one without an end
  --flood-while-serving print long lines from its first token on, without a pause
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def main() -> None:
    """Load, listen, serve, end."""
    options = parse()
    loading = threading.Event()
    loading.set()
    stops: list[int] = []

    def on_sigterm(number: int, _: object) -> None:
        if options.ignore_sigterm or (loading.is_set() and options.lose_sigterm):
            return
        if loading.is_set():
            os._exit(143)
        if options.crash_on_sigterm:
            os.kill(os.getpid(), signal.SIGSEGV)
        stops.append(number)  # an Event's lock may be held by the very thread this interrupts

    signal.signal(signal.SIGTERM, on_sigterm)
    if options.orphan:
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        child = subprocess.Popen(command, start_new_session=True)
        Path(options.orphan).write_text(str(child.pid))
    load(options)
    loading.clear()
    server = Server(options)
    server.start()
    while not stops:
        time.sleep(0.001 if options.flood_while_serving else 0.02)
        if server.is_past(options.exit_after):
            end(options)
        if options.flood_while_serving and server.made:
            print("z" * 2000, flush=True)
    server.stop(options.shutdown_timeout)


def end(options: argparse.Namespace) -> None:
    """Exit silently."""
    if options.die_by:
        os.kill(os.getpid(), options.die_by)
    os._exit(options.exit_code)


def parse() -> argparse.Namespace:
    """Return the options; ignore those that only vLLM knows."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("command")
    parser.add_argument("model")
    parser.add_argument("--served-model-name", default="m")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--shutdown-timeout", type=float, default=0)
    parser.add_argument("--load-s", type=float, default=0)
    parser.add_argument("--fail-with")
    parser.add_argument("--exit-after", type=float)
    parser.add_argument("--exit-code", type=int, default=0)
    parser.add_argument("--die-by", type=int)
    parser.add_argument("--sick-after", type=float)
    parser.add_argument("--slow-health-s", type=float, default=0)
    parser.add_argument("--mute-metrics-after", type=float)
    parser.add_argument("--slow-request-s", type=float, default=0)
    parser.add_argument("--wedge-after", type=float)
    parser.add_argument("--late-s", type=float, default=0)
    parser.add_argument("--runs-with-kv-cache-dtype", default="auto")
    parser.add_argument("--runs-with", type=json.loads, action="append", default=[])
    parser.add_argument("--orphan")
    parser.add_argument("--flood", type=int, default=0)
    for flag in ("--lose-sigterm", "--ignore-sigterm", "--never-listen", "--wrong-name", "--no-token"):
        parser.add_argument(flag, action="store_true")
    for flag in ("--end-loading", "--sick", "--no-guard", "--crash-on-sigterm", "--flood-while-serving"):
        parser.add_argument(flag, action="store_true")
    for flag in ("--wedge", "--no-batch", "--complain", "--complain-loading", "--deaf-to-drain"):
        parser.add_argument(flag, action="store_true")
    for flag in ("--enable-prefix-caching", "--enable-chunked-prefill"):
        parser.add_argument(flag, action=argparse.BooleanOptionalAction)
    for flag in ("--max-model-len", "--max-num-batched-tokens"):
        parser.add_argument(flag, type=int)
    return parser.parse_known_args()[0]


def load(options: argparse.Namespace) -> None:
    """Print the lines of a start, and take the requested time."""
    lines = (
        "(EngineCore pid=1) INFO 11-23 12:16:27 [core.py:109] Initializing a V1 LLM engine (v0.20.2) with config: ...",
        "(Worker pid=2) INFO 11-23 12:16:41 [cpu_model_runner.py:101] Starting to load model /m...",
        "(Worker pid=2) INFO 11-23 12:16:47 [cpu_model_runner.py:116] Warming up model for the compilation...",
        "(EngineCore pid=1) INFO 11-23 12:16:48 [kv_cache_utils.py:1708] GPU KV cache size: 382,803 tokens",
    )
    for _ in range(options.flood):
        print("x" * 5000, flush=True)
    if options.flood:
        sys.stdout.write("y" * 300_000)
        sys.stdout.flush()
        print(flush=True)
    for line in lines:
        print(line, flush=True)
        time.sleep(options.load_s / len(lines))
    if options.complain_loading:
        print("RuntimeError: Found no NVIDIA driver on your system", flush=True)
    if options.end_loading:
        end(options)
    if options.fail_with:
        print("(Worker pid=2) ERROR 11-23 12:16:48 [multiproc_executor.py:870] Traceback (most recent call last):")
        print(f"(Worker pid=2) ERROR 11-23 12:16:48 [multiproc_executor.py:870] {options.fail_with}")
        print("RuntimeError: Engine core initialization failed. See root cause above.", flush=True)
        sys.exit(1)
    while options.never_listen:
        time.sleep(0.05)


class Server(ThreadingHTTPServer):
    """The routes that servekit uses, one thread per request."""

    daemon_threads = True

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__((options.host, options.port), Handler)
        self.options = options
        self.warm_s = math.inf
        self.running = 0
        self.late = 0
        self.made = 0
        self.draining = self.stopping = False
        self.lock = threading.Lock()

    def is_past(self, seconds: float | None) -> bool:
        """Return whether this many seconds have passed since the warm-up; never true for None."""
        return seconds is not None and time.monotonic() - self.warm_s > seconds

    def start(self) -> None:
        """Listen."""
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self, drain_s: float) -> None:
        """Stop listening, let running requests finish for `drain_s`, and exit like vLLM: with 0, drained or not."""
        self.stopping = True
        self.shutdown()
        self.socket.close()
        end = time.monotonic() + drain_s
        while self.running and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.05)
        os._exit(0)


class Handler(BaseHTTPRequestHandler):
    """Answers like vLLM on the routes that servekit uses."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer /health, /v1/models and /metrics."""
        options = self.server.options
        if self.path == "/health":
            if self.server.made:
                time.sleep(options.slow_health_s)
            self.answer(503 if options.sick or self.server.is_past(options.sick_after) else 200, b"")
        elif self.path == "/v1/models":
            name = "another" if options.wrong_name else options.served_model_name
            self.answer(200, json.dumps({"object": "list", "data": [{"id": name}]}).encode())
        elif self.path == "/metrics":
            while self.server.is_past(options.mute_metrics_after):
                time.sleep(0.05)
            text = f'vllm:generation_tokens_total{{engine="0"}} {self.server.made}.0\n'
            self.answer(200, text.encode())
        elif options.no_guard:
            self.answer(404, b"{}")
        elif self.path == "/_servekit/counters":
            self.answer(200, json.dumps({"in_flight": self.server.running, "requests": []}).encode())
        elif self.path == "/_servekit/effective":
            effective = {
                "kv_cache_dtype": options.runs_with_kv_cache_dtype,
                "quantization": "compressed-tensors",
                "max_num_seqs": 1024,
                "multimodal": True,
                "head_dim": 256,
                "global_head_dim": 512,
                "attention_backend": "TRITON_ATTN",
                "structured_outputs_backend": "guidance",
                "served_model_names": [options.served_model_name],
                "limit_mm_per_prompt": {"image": 3, "audio": 0, "video": 0},
                "pillow": "13.0.0",
                "enable_prefix_caching": options.enable_prefix_caching,
                "enable_chunked_prefill": options.enable_chunked_prefill,
                "max_model_len": options.max_model_len,
                "max_num_batched_tokens": options.max_num_batched_tokens,
                "enable_prompt_embeds": False,
                "enable_mm_embeds": False,
                "mm_processor_cache_type": "lru",
                "kv_transfer_config": None,
                "worker": {"per-layer-embeddings": "none"},
            }
            for lie in options.runs_with:
                effective.update(lie)
            self.answer(200, json.dumps(effective).encode())
        else:
            self.answer(404, b"{}")

    def do_POST(self) -> None:
        """Generate, slowly if requested; servekit's own requests, one token or a batch, are never slow."""
        options = self.server.options
        if self.path == "/_servekit/drain":
            self.drain()
            return
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            refused = self.server.draining
            self.server.running += not refused
            self.server.late += not refused
        if refused:
            self.answer(503, b'{"error": {"code": "server_draining"}}')
            return
        try:
            if not self.reach_core():
                self.answer(200, json.dumps({"usage": {"completion_tokens": 0}}).encode())
                return
            batch = len(request["prompt"]) if isinstance(request.get("prompt"), list) else 1
            if options.no_batch and batch > 1:
                self.answer(500, b'{"error": {"message": "no batch"}}')
                return
            if request["max_tokens"] > 1 and batch == 1:
                time.sleep(options.slow_request_s)
            while options.wedge or (batch == 1 and self.server.is_past(options.wedge_after)):
                time.sleep(0.05)
            made = 0 if options.no_token else batch * request["max_tokens"]
            if options.complain and self.server.made:
                print("ValueError: a client's mistake", flush=True)
            self.server.made += made
            if "structured_outputs" in request:  # the last request of the warm-up: servekit now reports ready
                self.server.warm_s = min(self.server.warm_s, time.monotonic())
            self.answer(200, json.dumps({"usage": {"completion_tokens": made}}).encode())
        finally:
            with self.server.lock:
                self.server.running -= 1

    def reach_core(self) -> bool:
        """Pass a request to the core; return whether it was accepted."""
        time.sleep(self.server.options.late_s)
        with self.server.lock:
            self.server.late -= 1
        return not self.server.stopping

    def drain(self) -> None:
        """Do as the guard does: refuse new requests, and answer once the core has all requests admitted before."""
        while self.server.options.deaf_to_drain:
            time.sleep(0.05)
        with self.server.lock:
            self.server.draining = True
        end = time.monotonic() + 2
        while self.server.late and time.monotonic() < end:
            time.sleep(0.005)
        self.answer(200, json.dumps({"in_flight": self.server.running, "settled": not self.server.late}).encode())

    def answer(self, status: int, body: bytes) -> None:
        """Send one answer."""
        self.send_response(status)
        if self.server.stopping:
            self.send_header("connection", "close")  # like uvicorn; the base class then closes the connection
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


if __name__ == "__main__":
    main()
