"""Names and limits in the key file: what they mean, what is refused, and that no key ever shows."""

import asyncio
import hashlib
import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servekit.errors import ConfigurationError
from servekit.serve.guard.inside.servekit_guard.key_lines import KeyFileError, parse_lines, parse_time
from servekit.serve.guard.keys import load_key_lines, revoke_key, rotate_key
from tests.guard.test_flight import Holding
from tests.guard.test_gate import BODY, CHAT, Upstream, ask, make_gate, make_scope, run

FIRST = "sk-first-0123456789abcdef"
SECOND = "sk-second-0123456789abcdef"
THIRD = "sk-third-0123456789abcdef"
HASH = hashlib.sha256(FIRST.encode()).hexdigest()[:8]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (FIRST, HASH),
        (f"{FIRST}  # team-a", "team-a"),
        (f"{FIRST}#Team_A.1", "Team_A.1"),
        (f"{FIRST} # the phone", HASH),
        (f"{FIRST} # was {SECOND}", HASH),
        (f"{FIRST} # {SECOND}", HASH),
        (f"{FIRST} # expires=never or so", HASH),
        (f"{FIRST} # a/b", HASH),
        (f"{FIRST} #", HASH),
        (f"{FIRST} name={'n' * 40} # anything", "n" * 40),
        (f"{FIRST} name=one # two", "one"),
    ],
)
def test_names(line: str, name: str) -> None:
    """A comment of one short word, or an option, names a key; every other comment and every old key never shows."""
    assert [key.name for key in parse_lines(line).values()] == [name]


def test_limits() -> None:
    """The options stand between the key and the comment, in any order."""
    routes = "routes=/v1/models,/v1/messages"
    text = f"{FIRST} {routes} expires=2027-01-31 in-flight=8 # a\n{SECOND} expires=2027-01-31T12:00+02:00\n{THIRD}"
    first, second, third = parse_lines(text).values()
    assert (first.expires_s, first.in_flight, first.routes) == (
        parse_time("2027-01-31T00:00:00Z"),
        8,
        ("/v1/models", "/v1/messages"),
    )
    assert second.expires_s == parse_time("2027-01-31T10:00Z")
    assert (third.expires_s, third.in_flight, third.routes) == (None, None, ())


def test_all_mistakes_at_once_and_no_key_in_them() -> None:
    """Every wrong option is reported with its line, and nothing of the file is repeated."""
    text = (
        f"{FIRST} expires=soon in-flight=0 # a\n{SECOND} {THIRD}\n{THIRD} routes=/metrics\n"
        f"{'k' * 30} expire=2027-01-31\n{'l' * 30} in-flight=1 in-flight=2\n{'m' * 30} name=a/b\n"
        f"{'n' * 30} # fine\n{'n' * 30} in-flight=1\n"
    )
    with pytest.raises(KeyFileError) as caught:
        parse_lines(text)
    problems = caught.value.problems
    assert list(problems) == [1, 2, 3, 4, 5, 6, 8]
    assert "expires= must be" in problems[1]
    assert "in-flight= must be" in problems[1]
    assert "repeats the key of line 7" in problems[8]
    told = str(caught.value)
    assert not any(word in told for word in (FIRST, SECOND, THIRD, "soon", "/metrics", "expire=2027", "k" * 9, "n" * 9))


@given(st.text(st.characters(codec="ascii", exclude_characters="\r\n\x0b\x0c\x1c\x1d\x1e")))
def test_no_comment_breaks_a_file(comment: str) -> None:
    """Whatever stands in a comment, the key is valid without limits, and only a short plain word becomes its name."""
    [(text, key)] = parse_lines(f"{FIRST} #{comment}").items()
    assert text == FIRST
    assert (key.expires_s, key.in_flight, key.routes) == (None, None, ())
    assert key.name == HASH or (key.name == comment.strip() and len(key.name) < 20)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of three keys, two of one name, with a comment on a line of its own."""
    file = tmp_path / "keys"
    file.touch(0o600)
    file.write_text(f"# ours\n{FIRST} in-flight=4 # a\n{SECOND} expires=2027-01-31 # b\n\n# spare\n{THIRD} # a\n")
    return file


def test_a_named_key_is_rotated_alone(path: Path) -> None:
    """The new key takes the name and the limits of the old ones; all other lines stay as they were."""
    new = rotate_key(path, name="a", expires="2030-01-01T00:00:00Z")
    assert path.read_text() == (
        f"# ours\n{new} expires=2030-01-01T00:00:00Z in-flight=4  # a\n{SECOND} expires=2027-01-31 # b\n\n# spare\n"
    )
    other = rotate_key(path, name="a", keep_old=True)
    assert [key.name for key in load_key_lines(path).values()] == ["a", "a", "b"]
    long = rotate_key(path, name="n" * 40)
    assert load_key_lines(path)[long].name == "n" * 40
    unnamed = rotate_key(path)
    assert list(load_key_lines(path)) == [unnamed, long, other, new, SECOND]
    assert unnamed not in load_key_lines(path) or rotate_key(path) != unnamed
    assert len(load_key_lines(path)) == 5


def test_a_rotation_does_not_drop_the_keys_of_a_broken_file(path: Path) -> None:
    """A mistake in one line stops the rotation: the other lines may hold the keys of others."""
    before = path.read_text() + "short\n"
    path.write_text(before)
    with pytest.raises(ConfigurationError):
        rotate_key(path)
    assert path.read_text() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_root_manages_the_keys_of_a_service(path: Path) -> None:
    """Root keeps, rotates and revokes the keys in a service user's folder, and the guard of root still refuses them."""
    for place in (path, path.parent):
        os.chown(place, 12345, 12345)
    new = rotate_key(path)
    assert list(load_key_lines(path, manage=True)) == [new, FIRST, SECOND, THIRD]
    assert revoke_key(path, "a") == 2
    assert path.stat().st_uid == 12345
    os.chown(path.parent, 0, 0)
    assert list(load_key_lines(path, manage=True)) == [new, SECOND]
    with pytest.raises(ConfigurationError, match="belongs to user 12345"):
        load_key_lines(path)
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="run: sudo chmod 0600") as refused:
        rotate_key(path)
    assert "chown" not in str(refused.value), "the service could no longer read it"


def test_revocation(path: Path) -> None:
    """Every key of the name goes; an unknown name and the last keys stay, with a message."""
    assert revoke_key(path, "a") == 2
    assert list(load_key_lines(path)) == [SECOND]
    for name in ("a", "b"):
        with pytest.raises(ConfigurationError, match=name):
            revoke_key(path, name)


def ask_as(path: Path, line: str, route: str = CHAT) -> tuple[int | None, str]:
    """Return the status and the error's code of a request with the key FIRST, of which the file says `line`."""
    path.write_text(f"{FIRST} {line}\n")
    status, _, body = run(make_gate(Upstream(), path), make_scope(route, key=FIRST), BODY)
    return status, "" if status == 200 else json.loads(body)["error"]["code"]


def test_an_expired_key_is_refused(path: Path) -> None:
    """From its second on, with 401; before it, it is accepted."""
    tomorrow = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 86_400))
    assert ask_as(path, f"expires={tomorrow}")[0] == 200
    assert ask_as(path, "expires=2020-01-01") == (401, "invalid_api_key")


def test_a_key_of_other_routes_is_refused(path: Path) -> None:
    """A key with routes may use these and no others."""
    assert ask_as(path, "routes=/v1/messages,/v1/chat/completions")[0] == 200
    assert ask_as(path, "routes=/v1/messages") == (403, "route_not_allowed")


def test_a_key_at_its_limit_is_refused(path: Path) -> None:
    """A request beyond the name's limit is 429; when one has ended, the next is accepted."""
    path.write_text(f"{FIRST} in-flight=1 # a\n")
    upstream = Holding()

    async def main() -> list[int | None]:
        upstream.hold, upstream.began = asyncio.Event(), asyncio.Event()
        gate = make_gate(upstream, path)
        first = asyncio.create_task(ask(gate, make_scope(key=FIRST), BODY))
        await upstream.began.wait()
        second = await ask(gate, make_scope(key=FIRST), BODY)
        upstream.hold.set()
        return [answer[0] for answer in (second, await first, await ask(gate, make_scope(key=FIRST), BODY))]

    assert asyncio.run(main()) == [429, 200, 200]
