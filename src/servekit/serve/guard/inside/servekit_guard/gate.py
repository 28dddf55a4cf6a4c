"""The ASGI class that decides which requests reach vLLM, and answers the others."""

import hashlib
import hmac
import ipaddress
import time
from collections import Counter
from typing import Any

from .asgi import CHECKED_BODY, REQUEST_ID, App, Receive, Scope, Send, answer, answer_json
from .body.bounds import BodyError
from .body.check import check_body
from .body.parse import parse
from .core.handoff import Handoff
from .core.live_config import describe
from .error_shape import reshape_errors
from .flight import Flights
from .guard_config import Rules
from .intake import ClientGoneError, Intake, Slot, replay
from .key_lines import Key
from .keyring import Keyring
from .refusals import (
    EXPIRED,
    FORBIDDEN,
    NOT_FOUND,
    UNAUTHORIZED,
    Refusal,
    RefusedError,
    key_busy,
    refuse,
    refuse_websocket,
)
from .request_ids import name_request
from .routes import CLIENT_TABLE, COUNTERS, DRAIN, EFFECTIVE, OWN_TABLE, Route, find_route
from .stopwatch import Stopwatch
from .usage.ledger import NO_KEY, OWN, Ledger
from .usage.meter import Account, Meter
from .usage.request_ring import Ring
from .usage.wrong_keys import WrongKeys
from .wire import cors

TOKEN_HEADER = b"x-servekit-token"


class Gate:
    """Denies by default. There is one object per server process; it runs on the event loop and needs no lock."""

    def __init__(self, app: App, rules: Rules) -> None:
        """Read the keys; raises keyring.KeyFileError when there is no usable key."""
        self._app = app
        self._rules = rules
        self._keys = Keyring(rules.api_keys_file) if rules.api_keys_file is not None else None
        self._token_hash = bytes.fromhex(rules.token_sha256)
        self._counts: Counter[tuple[str, str]] = Counter()
        self._intake = Intake(rules)
        self.handoff = Handoff(rules.penalised_tokens)
        self.flights = Flights(rules.flight_file, rules.max_in_flight)
        self.meter = Meter(Ledger(rules.usage_file), Ring(rules.request_log_file) if rules.request_log_file else None)
        self._wrong_keys = WrongKeys()
        self._stopwatch = Stopwatch()
        self.worker: dict[str, Any] = {}
        """What vLLM's worker reports of the loaded model (`core/embeddings.py`)."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on to vLLM."""
        if scope["type"] == "lifespan":
            with self._stopwatch.running():
                await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            self._counts["other", NOT_FOUND.outcome] += 1
            if scope["type"] == "websocket":
                await refuse_websocket(scope, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if origins := self._rules.cors_origins:
            origin = cors.listed_origin(scope, origins)
            send = cors.share(send, origin)
            method = cors.asked_method(scope) if origin else None
            if method and (asked := find_route(scope, CLIENT_TABLE, method)):
                self._counts[asked.path, "preflight"] += 1
                await answer(send, 204, cors.preflight_headers(scope, method), b"")
                return
        own = self._is_own(scope)
        route = find_route(scope, OWN_TABLE if own else CLIENT_TABLE)
        label = route.path if route else "other"
        request_id = name_request(scope)
        scope[REQUEST_ID] = request_id.decode()
        account = Account(self.meter, OWN, scope[REQUEST_ID], label)
        send_on = reshape_errors(send, scope["path"], request_id, account.begin_answer)
        try:
            if own and route is not None:
                self._counts[label, "own"] += 1
                await self._serve_own(route, scope, receive, send_on, account)
            else:
                await self._serve_client(*self._admitted(route, scope), scope, receive, send_on, account)
        except RefusedError as error:
            self._counts[label, error.refusal.outcome] += 1
            await refuse(scope, send, error.refusal, request_id, receive if error.unread else None)
        except ClientGoneError:
            self._counts[label, "client_gone"] += 1

    def _admitted(self, route: Route | None, scope: Scope) -> tuple[Route, Key | None]:
        """Return the route and the key when they exist; raises RefusedError (401, 404)."""
        if route is None:
            raise RefusedError(NOT_FOUND)
        if route.public or self._keys is None:
            return route, None
        presented = _presented_key(scope)
        key = self._keys.find(presented) if presented is not None else None
        if key is None:
            self._wrong_keys.count(presented)
            raise RefusedError(UNAUTHORIZED)
        return route, key

    def _check(self, key: Key | None, route: Route) -> None:
        """Check what the key may do now; raises RefusedError (401, 403, 429, 503)."""
        if key is not None:
            if key.expired(time.time()):
                raise RefusedError(EXPIRED)
            if key.routes and route.path not in key.routes:
                raise RefusedError(FORBIDDEN)
            if route.generates and key.in_flight is not None and self.meter.in_flight[key.name] > key.in_flight:
                raise RefusedError(key_busy(self._rules.retry_after_s))
        self._intake.check(unread=route.generates)

    def _is_own(self, scope: Scope) -> bool:
        """Return whether the request comes from servekit: with its token, from this host."""
        hashes = [hashlib.sha256(value).digest() for name, value in scope["headers"] if name == TOKEN_HEADER]
        return len(hashes) == 1 and hmac.compare_digest(hashes[0], self._token_hash) and _comes_from_this_host(scope)

    async def _serve_own(self, route: Route, scope: Scope, receive: Receive, send: Send, account: Account) -> None:
        """Serve servekit without limits, or a server under full load would look like a dead one."""
        if route is EFFECTIVE:
            await answer_json(send, describe(scope["app"]) | {"worker": self.worker})
        elif route is COUNTERS:
            await answer_json(send, self.counters())
        elif route is DRAIN:
            await answer_json(send, await self._drain())
        elif route.generates:
            with account:
                await self._app(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _serve_client(
        self, route: Route, key: Key | None, scope: Scope, receive: Receive, send: Send, account: Account
    ) -> None:
        """Pass an admitted request on to vLLM; its answer stays unchanged unless it is an error."""
        if not route.generates:
            self._check(key, route)
            self._counts[route.path, "allowed"] += 1
            await self._app({**scope, "method": route.method}, receive, send)  # uvicorn leaves out the body of a HEAD
            return
        account.name = key.name if key is not None else NO_KEY
        with account:
            self._check(key, route)
            slot = self._intake.enter()
            try:
                await self._generate(route, slot, scope, account.watch(receive), send, account)
            finally:
                self._intake.leave(slot)

    async def _generate(
        self, route: Route, slot: Slot, scope: Scope, receive: Receive, send: Send, account: Account
    ) -> None:
        chunks = await self._intake.read(slot, scope, receive)
        scope[CHECKED_BODY] = fields = self._checked(chunks, route, slot)
        account.stream = fields.get("stream") is True
        self._counts[route.path, "allowed"] += 1
        recorded = self.flights.record(scope[REQUEST_ID], route.path, slot.reserved_bytes, fields, account.name)
        with recorded, self.handoff.track():
            await self._app(scope, replay(chunks, receive), send)

    def _checked(self, chunks: list[bytes], route: Route, slot: Slot) -> dict[str, Any]:
        """Return the body's fields; raises RefusedError (400, 429) when they must not reach vLLM."""
        try:
            fields = parse(b"".join(chunks))
            weight = check_body(fields, route.path, self.handoff.model.vocabulary_size, self._rules.structured_outputs)
        except BodyError as error:
            raise RefusedError(Refusal(400, "harmful", "invalid_value", error.message, error.param)) from None
        if weight:
            self._intake.weigh(slot, weight)
        return fields

    async def _drain(self) -> dict[str, Any]:
        """Refuse every client from now on; return what is in flight when EngineCore has all earlier requests."""
        self._intake.close()
        return {"settled": await self.handoff.settle(self._rules.settle_s), "in_flight": self._intake.in_flight}

    def count_unread(self, scope: Scope) -> None:
        """Count a request whose client did not read the answer; it was already counted when it arrived."""
        route = find_route(scope, OWN_TABLE)
        self._counts[route.path if route else "other", "unread"] += 1

    def counters(self) -> dict[str, Any]:
        """Return the counters that servekit exports as metrics."""
        keys = self._keys
        if keys is not None:
            keys.reload_if_changed()  # without a client too
        return {
            "requests": [
                {"route": route, "outcome": outcome, "count": count}
                for (route, outcome), count in sorted(self._counts.items())
            ],
            "in_flight": self._intake.in_flight,
            "quiet_s": self.meter.quiet_s(),
            "max_in_flight": self._rules.max_in_flight,
            "buffered_bytes": self._intake.buffered_bytes,
            "max_buffered_bytes": self._rules.max_buffered_bytes,
            "structured_weight": self._intake.structured_weight,
            "authentication": keys is not None,
            "keys": len(keys) if keys is not None else 0,
            "key_reloads": keys.reloads if keys is not None else 0,
            "refused_key_reloads": keys.refused_reloads if keys is not None else 0,
            "wrong_keys": self._wrong_keys.read(),
            "key_file_problem": keys.problem if keys is not None else None,
            "event_loop": self._stopwatch.read(),
            "pinned_host_bytes": self.worker.get("pinned_host_bytes"),
        }


def _presented_key(scope: Scope) -> bytes | None:
    """Return the request's key: the bearer token or, without one, what Anthropic's clients send; None without one."""
    sent = [value for name, value in scope["headers"] if name == b"authorization"]
    if not sent:
        named = [value.strip(b" ") for name, value in scope["headers"] if name == b"x-api-key"]
        return named[0] if len(named) == 1 else None
    scheme, _, key = sent[0].partition(b" ")
    # Two headers are refused: proxies disagree about who the client is.
    return key.strip(b" ") if len(sent) == 1 and scheme.lower() == b"bearer" else None


def _comes_from_this_host(scope: Scope) -> bool:
    """Return whether the peer is this host: a loopback address, or the address it connected to."""
    client, server = scope.get("client"), scope.get("server")
    return bool(client and ((server and client[0] == server[0]) or is_loopback(client[0])))


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this host only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
