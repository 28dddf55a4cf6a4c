"""The ASGI class: which request may pass to vLLM, and what the others are answered."""

import hashlib
import hmac
import ipaddress
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from .body.check import check
from .body.parse import parse
from .body.problem import Problem
from .core.handoff import Handoff
from .core.live_config import describe, vocabulary_size
from .error_shape import passed_on
from .flight import REQUEST_ID, Flights
from .guard_config import Rules
from .images.decoded import request_turn
from .intake import ClientGoneError, Intake, Slot, replay
from .keyring import Keyring
from .refusals import (
    NOT_FOUND,
    UNAUTHORIZED,
    App,
    Receive,
    RefusedError,
    Scope,
    Send,
    answer,
    harmful,
    refuse,
    refuse_and_linger,
    refuse_websocket,
)
from .request_ids import name_request
from .stopwatch import Stopwatch

TOKEN_HEADER = b"x-servekit-token"
CHECKED_BODY = "servekit.body"
"""Where the parsed body is in the request's scope: vLLM gets what was checked, not what another parser would read."""


@dataclass(frozen=True)
class Route:
    """A route that exists: everything else does not."""

    path: str
    method: str
    public: bool = False
    """Answered without a key."""
    generates: bool = False
    """Makes the engine work: counts as in flight, and its body is limited and looked at."""


CLIENT_ROUTES = (
    Route("/health", "GET", public=True),
    Route("/v1/models", "GET"),
    Route("/v1/chat/completions", "POST", generates=True),
    Route("/v1/completions", "POST", generates=True),
    Route("/v1/responses", "POST", generates=True),
    Route("/v1/messages", "POST", generates=True),
)
"""What a client may reach."""

EFFECTIVE = Route("/_servekit/effective", "GET")
COUNTERS = Route("/_servekit/counters", "GET")
DRAIN = Route("/_servekit/drain", "POST")
OWN_ROUTES = (*CLIENT_ROUTES, Route("/metrics", "GET"), EFFECTIVE, COUNTERS, DRAIN)
"""What servekit may reach with its private token."""

_CLIENT_TABLE = {(route.path, route.method): route for route in CLIENT_ROUTES}
_OWN_TABLE = {(route.path, route.method): route for route in OWN_ROUTES}


class Gate:
    """Deny by default. One object per server process; it lives on the event loop and needs no lock."""

    def __init__(self, app: App, rules: Rules) -> None:
        """Read the keys; raises keyring.KeyFileError when there is no usable one."""
        self._app = app
        self._rules = rules
        self._keys = Keyring(rules.api_keys_file) if rules.api_keys_file is not None else None
        self._token_hash = bytes.fromhex(rules.token_sha256)
        self._counts: Counter[tuple[str, str]] = Counter()
        self._intake = Intake(rules)
        self._structured_outputs = frozenset(rules.structured_outputs)
        self._vocabulary_size: int | None = None
        """Of the running model; asked once, for it does not change."""
        self.passage = Handoff()
        self.flights = Flights(rules.flight_file, rules.max_in_flight)
        self._stopwatch = Stopwatch()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on one connection's request."""
        if scope["type"] == "lifespan":
            with self._stopwatch:
                await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            self._counts["other", NOT_FOUND.outcome] += 1
            if scope["type"] == "websocket":
                await refuse_websocket(scope, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        own = self._is_own(scope)
        route = find_route(scope, _OWN_TABLE if own else _CLIENT_TABLE)
        label = route.path if route else "other"
        request_id = name_request(scope)
        scope[REQUEST_ID] = request_id.decode()
        send_on = passed_on(send, scope["path"], request_id)
        try:
            if own and route is not None:
                self._counts[label, "own"] += 1
                await self._serve_own(route, scope, receive, send_on)
            else:
                await self._serve_client(self._admitted(route, scope), scope, receive, send_on)
        except RefusedError as error:
            self._counts[label, error.refusal.outcome] += 1
            if error.unread:
                await refuse_and_linger(scope, receive, send, error.refusal, request_id)
            else:
                await refuse(scope, send, error.refusal, request_id)
        except ClientGoneError:
            self._counts[label, "client_gone"] += 1

    def _admitted(self, route: Route | None, scope: Scope) -> Route:
        """Return the route when there is one and the request may use it; raises RefusedError (401, 404, 503)."""
        if route is None:
            raise RefusedError(NOT_FOUND)
        if not route.public and self._keys is not None and not _has_key(scope, self._keys):
            raise RefusedError(UNAUTHORIZED)
        self._intake.check(unread=route.generates)
        return route

    def _is_own(self, scope: Scope) -> bool:
        """Tell whether servekit itself asks: its token, from this host."""
        tokens = [value for name, value in scope["headers"] if name == TOKEN_HEADER]
        if len(tokens) != 1:
            return False
        same = hmac.compare_digest(hashlib.sha256(tokens[0]).digest(), self._token_hash)
        return same and _comes_from_this_host(scope)

    async def _serve_own(self, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve servekit: no limit applies, or a full server would look like a dead one."""
        if route is EFFECTIVE:
            await answer(scope, send, 200, json.dumps(describe(scope["app"])).encode(), [])
        elif route is COUNTERS:
            await answer(scope, send, 200, json.dumps(self.counters()).encode(), [])
        elif route is DRAIN:
            await answer(scope, send, 200, json.dumps(await self._drain()).encode(), [])
        else:
            await self._app(scope, receive, send)

    async def _serve_client(self, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an admitted request on to vLLM, whose answer is not touched unless it is an error."""
        if not route.generates:
            self._counts[route.path, "allowed"] += 1
            await self._app(scope, receive, send)
            return
        with self._intake.enter() as slot, self.flights.enter(scope, route.path) as flight:
            chunks = await self._intake.read(slot, scope, receive)
            scope[CHECKED_BODY] = fields = self._checked(chunks, route, scope, slot)
            flight.record(slot.reserved_bytes, fields)
            self._counts[route.path, "allowed"] += 1
            with self.passage.follow(), request_turn():
                await self._app(scope, replay(chunks, receive), send)

    def _checked(self, chunks: list[bytes], route: Route, scope: Scope, slot: Slot) -> dict[str, Any]:
        """Return the body's fields; raises RefusedError (400, 429) where they must not reach vLLM."""
        if self._vocabulary_size is None:
            self._vocabulary_size = vocabulary_size(scope)
        fields = parse(b"".join(chunks))
        if isinstance(fields, Problem):
            raise RefusedError(harmful(*fields))
        known = self._vocabulary_size or 0
        if problem := check(fields, route.path, known, self._structured_outputs, slot.weigh):
            raise RefusedError(harmful(*problem))
        return fields

    async def _drain(self) -> dict[str, Any]:
        """Refuse every client from now on; return what runs when EngineCore has all that was let in before."""
        self._intake.close()
        settled = await self.passage.settle(self._rules.settle_s)
        return {"in_flight": self._intake.in_flight, "settled": settled}

    def count_unread(self, scope: Scope) -> None:
        """Count a request whose answer its client did not read; it was counted as it came, too."""
        route = find_route(scope, _OWN_TABLE)
        self._counts[route.path if route else "other", "unread"] += 1

    def counters(self) -> dict[str, Any]:
        """Return what servekit exports on its own metrics page."""
        keys = self._keys
        return {
            "requests": [
                {"route": route, "outcome": outcome, "count": count}
                for (route, outcome), count in sorted(self._counts.items())
            ],
            "in_flight": self._intake.in_flight,
            "max_in_flight": self._rules.max_in_flight,
            "buffered_bytes": self._intake.buffered_bytes,
            "max_buffered_bytes": self._rules.max_buffered_bytes,
            "structured_weight": self._intake.structured_weight,
            "authentication": keys is not None,
            "keys": len(keys) if keys is not None else 0,
            "key_reloads": keys.reloads if keys is not None else 0,
            "refused_key_reloads": keys.refused_reloads if keys is not None else 0,
            "key_file_problem": keys.problem if keys is not None else None,
            "event_loop": self._stopwatch.read(),
        }


def find_route(scope: Scope, table: dict[tuple[str, str], Route]) -> Route | None:
    """Return the route that this path and method, letter by letter as they were sent, name.

    `path` has its percent escapes resolved, `raw_path` has not: only a path that reads the same in both is
    what it seems. A root path would make Starlette cut the path before it looks it up, so there is none.
    """
    route = table.get((scope["path"], scope["method"]))
    if route is None or scope.get("root_path"):
        return None
    raw_path = scope.get("raw_path")
    return route if raw_path is None or raw_path == route.path.encode() else None


def _has_key(scope: Scope, keys: Keyring) -> bool:
    credentials = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(credentials) != 1:  # two would be a quarrel between proxies about who this is
        return False
    scheme, _, key = credentials[0].partition(b" ")
    return keys.admits(key.strip(b" ")) and scheme.lower() == b"bearer"


def _comes_from_this_host(scope: Scope) -> bool:
    """Tell whether the peer is this host: a loopback address, or the address it connected to."""
    client, server = scope.get("client"), scope.get("server")
    if not client:
        return False
    if server and client[0] == server[0]:
        return True
    try:
        return ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False
