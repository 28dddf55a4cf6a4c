"""Streaming requests as a client sends them, to record how they end when the server ends."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter


class Streams:
    """Some streams of one length that begin together; `outcomes` has how each ended."""

    def __init__(self, url: str, key: str, *, count: int, tokens: int, model: str = "model") -> None:
        self.outcomes: Counter[str] = Counter()
        self.first_token = threading.Event()
        self.all_begun = threading.Event()
        self._begun, self._count = 0, count
        self._lock = threading.Lock()
        self._tokens = tokens
        self._threads = [
            threading.Thread(target=self._run, args=(url, key, model, number), daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def wait(self, within_s: float) -> dict[str, int]:
        """Wait for all of them; return the number of each outcome."""
        end = time.monotonic() + within_s
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        unfinished = sum(thread.is_alive() for thread in self._threads)
        return dict(self.outcomes) | ({"unfinished": unfinished} if unfinished else {})

    def _run(self, url: str, key: str, model: str, number: int) -> None:
        body = {"model": model, "prompt": f"{number} " * 50, "max_tokens": self._tokens, "ignore_eos": True}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                self.outcomes[self._read(answer)] += 1
        except urllib.error.HTTPError as error:
            self.outcomes[f"HTTP {error.code}"] += 1
        except OSError as error:
            self.outcomes[f"connection: {type(error).__name__}"] += 1

    def _read(self, answer: "urllib.request._UrlopenRet") -> str:
        made, broken, done, reason = 0, "", False, ""
        for number, line in enumerate(answer):
            if number == 0:
                self._begin()
            text = line.decode(errors="replace").strip()
            if text == "data: [DONE]":
                done = True
            elif text.startswith("data: "):
                event = json.loads(text[6:])
                broken = broken or ("error event" if "error" in event else "")
                reason = next((each.get("finish_reason") for each in event.get("choices", ())), None) or reason
                made = (event.get("usage") or {}).get("completion_tokens", made)
        if broken or (done and made == self._tokens):
            return broken or "whole"
        return f"{made} of {self._tokens} tokens, finish_reason {reason}{'' if done else ', no [DONE]'}"

    def _begin(self) -> None:
        with self._lock:
            self._begun += 1
            self.first_token.set()
            if self._begun == self._count:
                self.all_begun.set()
