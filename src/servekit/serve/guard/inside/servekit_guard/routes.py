"""The routes that are served; all others are 404."""

from collections.abc import Mapping
from dataclasses import dataclass

from .asgi import Scope

NAMED_MODEL = "/v1/models/"
"""What stands before the name of one model, which may have slashes in it, as they are or as `%2F`."""


@dataclass(frozen=True)
class Route:
    """A route that is served."""

    path: str
    method: str
    public: bool = False
    """Needs no key."""
    generates: bool = False
    """Makes the server work: counts as in flight, and its body is limited and checked."""


MODEL = Route(NAMED_MODEL + "{name}", "GET")
CLIENT_ROUTES = (
    Route("/health", "GET", public=True),
    Route("/v1/models", "GET"),
    MODEL,
    Route("/v1/chat/completions", "POST", generates=True),
    Route("/v1/completions", "POST", generates=True),
    Route("/v1/responses", "POST", generates=True),
    Route("/v1/messages", "POST", generates=True),
    Route("/v1/messages/count_tokens", "POST", generates=True),
)
"""The routes for clients."""

EFFECTIVE = Route("/_servekit/effective", "GET")
COUNTERS = Route("/_servekit/counters", "GET")
DRAIN = Route("/_servekit/drain", "POST")
OWN_ROUTES = (*CLIENT_ROUTES, Route("/metrics", "GET"), EFFECTIVE, COUNTERS, DRAIN)
"""The routes for servekit, with its private token."""

Table = Mapping[tuple[str, str], Route]
CLIENT_TABLE: Table = {(route.path, route.method): route for route in CLIENT_ROUTES}
OWN_TABLE: Table = {(route.path, route.method): route for route in OWN_ROUTES}


def find_route(scope: Scope, table: Table, method: str | None = None) -> Route | None:
    """Return the route with exactly this path and method, character by character as they were sent.

    `path` has its percent escapes resolved, `raw_path` does not: a path counts only when both are equal. A root path
    would make Starlette strip the path before it looks it up, so a request with one has no route. Of a model's path
    only what stands before the name is compared; where GET is served, HEAD is too.
    method: asks for another one than the request's.
    """
    path, method = scope["path"], method or scope["method"]
    raw_path = path.encode(errors="replace") if scope.get("raw_path") is None else scope["raw_path"]
    before = NAMED_MODEL.encode()
    if path.startswith(NAMED_MODEL) and raw_path.startswith(before) and raw_path != before:
        path, raw_path = MODEL.path, MODEL.path.encode()
    route = table.get((path, "GET" if method == "HEAD" else method))
    return route if route and raw_path == route.path.encode() and not scope.get("root_path") else None
