"""HTTP that servers have parsed differently from the RFC or from their documentation."""

from tests.engine.killers.case import CHAT, COMPLETIONS, RIGHT, Case, Group, Target, chat


def ordinary(target: Target) -> dict[str, object]:
    """Return a plain chat request."""
    return chat(model=target.model)


CLOSED = frozenset({0, 400, 413, 431})
"""A head over the limit: the server closes the connection, with or without an answer."""

HEADS = Group(
    "heads",
    (
        Case(
            "Upgrade: h2c with a body",
            ordinary,
            CHAT,
            RIGHT,
            headers=(
                "Connection: Upgrade, HTTP2-Settings, close",
                "Upgrade: h2c",
                "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA",
            ),
        ),
        Case(
            "Upgrade: websocket with a body",
            ordinary,
            CHAT,
            RIGHT | {400},
            headers=("Connection: Upgrade", "Upgrade: websocket"),
        ),
        Case("headers of 70 KB", ordinary, CHAT, CLOSED, headers=("X-Long: " + "a" * 70_000,)),
        Case("headers of 90 KB", ordinary, CHAT, CLOSED, headers=("X-Long: " + "a" * 90_000,)),
        Case("two Host headers", ordinary, CHAT, headers=("Host: a", "Host: b")),
        Case(
            "a Host that is a path",
            ordinary,
            CHAT,
            RIGHT | {400},
            headers=("Host: x/?a=",),
            closes=("CVE-2026-48746", "CVE-2026-48710", "PYSEC-2026-248"),
        ),
        Case(
            "the models", lambda _target: b"", "/v1/models", RIGHT, method="GET", hides=lambda target: (target.folder,)
        ),
        Case(
            "a form",
            ordinary,
            CHAT,
            frozenset({400, 415}),
            headers=("Content-Type: application/x-www-form-urlencoded",),
        ),
        Case(
            "a closed route: generate",
            ordinary,
            "/inference/v1/generate",
            frozenset({404}),
            closes=("CVE-2026-105754", "PYSEC-2026-4353"),
        ),
        Case(
            "a closed route: tokenize",
            ordinary,
            "/tokenize",
            frozenset({404}),
            closes=("CVE-2026-105758", "CVE-2026-105760"),
        ),
        Case("a closed route: score", ordinary, "/score", frozenset({404}), closes=("CVE-2026-105755",)),
        Case("a closed route: rerank", ordinary, "/rerank", frozenset({404})),
        Case(
            "a closed route: derender",
            ordinary,
            "/v1/chat/completions/derender",
            frozenset({404}),
            closes=("CVE-2026-71486",),
        ),
        Case("a closed route: invocations", ordinary, "/invocations", frozenset({404})),
        Case(
            "a plain completion after all",
            lambda target: {"model": target.model, "prompt": "x", "max_tokens": 2},
            COMPLETIONS,
            RIGHT,
        ),
    ),
)

GROUPS = (HEADS,)
