"""servekit's side of the guard: what it writes, how the engine loads it, and which settings it refuses."""

import hashlib
import json
import resource
from dataclasses import replace
from pathlib import Path

import pytest

from servekit.errors import ConfigurationError
from servekit.serve.guard import (
    INSIDE,
    GuardSettings,
    default_max_in_flight,
    guard_arguments,
    guard_environment,
    limit_penalties,
    prepare_guard,
)
from servekit.serve.guard.inside.servekit_guard.gate import is_loopback
from servekit.serve.guard.inside.servekit_guard.guard_config import Rules
from servekit.serve.guard.keys import load_keys

HEADER = "x-servekit-token"


@pytest.fixture
def settings(tmp_path: Path) -> GuardSettings:
    return GuardSettings(state_dir=tmp_path / "state", max_in_flight=64)


def test_a_key_is_made_when_none_is_configured(settings: GuardSettings, tmp_path: Path) -> None:
    """The first run creates a key in the state folder and reports it; the second uses it."""
    guard = prepare_guard(settings, tmp_path / "run")
    assert guard.key_generated
    assert guard.key_file == tmp_path / "state" / "api_keys"
    assert not prepare_guard(settings, tmp_path / "run").key_generated


def test_the_configuration_holds_no_secret(settings: GuardSettings, tmp_path: Path) -> None:
    """The file has mode 0600 and names the keys' file and the token's hash, but neither key nor token."""
    guard = prepare_guard(settings, tmp_path / "run")
    assert guard.key_file is not None
    text = guard.config_path.read_text()
    assert guard.config_path.stat().st_mode & 0o777 == 0o600
    assert guard.headers[HEADER] not in text
    assert load_keys(guard.key_file)[0] not in text
    rules = Rules.read(guard.config_path)
    assert rules.token_sha256 == hashlib.sha256(guard.headers[HEADER].encode()).hexdigest()
    assert rules.max_buffered_bytes == 1024**3


def test_the_plans_bound_is_added(settings: GuardSettings, tmp_path: Path) -> None:
    """The memory plan's bound comes once the checkpoint was read; nothing else in the file changes."""
    path = prepare_guard(settings, tmp_path / "run").config_path
    before = Rules.read(path)
    assert before.penalised_tokens is None
    limit_penalties(path, 77)
    assert Rules.read(path) == replace(before, penalised_tokens=77)
    assert path.stat().st_mode & 0o777 == 0o600


def test_files_that_find_no_space_are_named(settings: GuardSettings, tmp_path: Path) -> None:
    """Allocating space names no file by itself; here a limit on the size of files stands for a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, hard))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            prepare_guard(settings, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(tmp_path / "run")


def test_the_token_is_new_each_run_and_not_shown(settings: GuardSettings, tmp_path: Path) -> None:
    """The token is different each time and appears only in the header."""
    one, other = (prepare_guard(settings, tmp_path / "run") for _ in range(2))
    assert one.headers[HEADER] != other.headers[HEADER]
    assert one.headers[HEADER] not in repr(one)
    assert one.headers[HEADER] not in " ".join(guard_environment(one.config_path).values())
    assert set(one.headers) == {HEADER}


def test_the_engine_gets_the_guard_and_nothing_else_of_servekit(settings: GuardSettings, tmp_path: Path) -> None:
    """PYTHONPATH is a folder with one package, which is also a plugin; the engine loads the guard as its middleware."""
    guard = prepare_guard(settings, tmp_path / "run")
    environment = guard_environment(guard.config_path)
    assert environment["PYTHONPATH"] == str(INSIDE)
    names = {entry.name for entry in INSIDE.iterdir() if entry.name != "__pycache__"}
    assert names == {"servekit_guard", "servekit_guard-1.dist-info"}
    assert guard_arguments(())[:2] == ("--middleware", "servekit_guard.entry.Guard")
    assert environment["SERVEKIT_GUARD_CONFIG"] == str(guard.config_path)


def test_no_media_domain_means_none(settings: GuardSettings, tmp_path: Path) -> None:
    """Without domains vLLM gets a list that no URL can match; it never follows redirects."""
    environment = guard_environment(tmp_path / "guard.json")
    assert guard_arguments(())[4:6] == ("--allowed-media-domains", "no domain: data URLs only")
    assert environment["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"
    assert environment["VLLM_MEDIA_CONNECTOR"] == "servekit"
    domains = ("images.example.org", "cdn.example.org")
    guard = prepare_guard(replace(settings, media_domains=domains), tmp_path / "run")
    assert guard_arguments(domains)[4:7] == ("--allowed-media-domains", *domains)
    assert Rules.read(guard.config_path).media_domains == domains


def test_the_structured_output_backend_is_fixed(settings: GuardSettings, tmp_path: Path) -> None:
    """vLLM gets one backend, with the profile's other options; the guard gets the enabled kinds."""
    guard = prepare_guard(replace(settings, structured_outputs=("regex",)), tmp_path / "run")
    assert guard_arguments(())[2:4] == ("--structured-outputs-config", '{"backend": "guidance"}')
    assert Rules.read(guard.config_path).structured_outputs == ("regex",)
    arguments = guard_arguments((), {"disable_any_whitespace": True})
    assert json.loads(arguments[3]) == {"disable_any_whitespace": True, "backend": "guidance"}


def test_an_old_configuration_is_replaced(settings: GuardSettings, tmp_path: Path) -> None:
    """An older file or link is replaced, not written through."""
    target = tmp_path / "elsewhere"
    target.write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "guard.json").symlink_to(target)
    guard = prepare_guard(settings, tmp_path / "run")
    assert target.read_text() == ""
    assert not guard.config_path.is_symlink()


def test_no_auth_works_on_loopback_or_with_consent(settings: GuardSettings, tmp_path: Path) -> None:
    """Without authentication there is no key file; other addresses than loopback need the operator's consent."""
    guard = prepare_guard(replace(settings, no_auth=True), tmp_path / "run")
    assert guard.key_file is None
    assert not (tmp_path / "state").exists()
    exposed = replace(settings, no_auth=True, host="0.0.0.0")  # noqa: S104 # the address under test
    with pytest.raises(ConfigurationError, match="--expose-without-auth"):
        prepare_guard(exposed, tmp_path / "run")
    assert prepare_guard(replace(exposed, expose_without_auth=True), tmp_path / "run").key_file is None


WRONG_ORIGINS = (
    "*",
    "null",
    "app.example.org",
    "https://app.example.org/",
    "https://App.example.org",
    "https://*.example.org",
    "https://app.example.org:443",
    "http://app.example.org:80",
    "https://u@app.example.org",
)


def test_origins_are_what_a_browser_sends(settings: GuardSettings, tmp_path: Path) -> None:
    """The guard gets the listed origins; vLLM gets none, because it would allow every page to read its answers."""
    origins = ("https://app.example.org", "http://localhost:3000", "http://[::1]:8080", "chrome-extension://abcdef")
    guard = prepare_guard(replace(settings, cors_origins=origins), tmp_path / "run")
    assert Rules.read(guard.config_path).cors_origins == origins
    assert guard_arguments(())[-2:] == ("--allowed-origins", "[]")


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    """Every wrong setting is reported with its variable, and no key is created for a start that fails."""
    settings = GuardSettings(
        state_dir=tmp_path / "state",
        max_in_flight=0,
        max_body_bytes=0,
        media_domains=("https://example.org", "*.example.org", "UPPER.example.org", "a b"),
        cors_origins=WRONG_ORIGINS,
        structured_outputs=("regexp",),
    )
    with pytest.raises(ConfigurationError) as caught:
        prepare_guard(settings, tmp_path / "run")
    assert [finding.subject for finding in caught.value.findings] == [
        "SERVEKIT_MAX_BODY_MIB",
        "SERVEKIT_MAX_IN_FLIGHT",
        *["SERVEKIT_MEDIA_DOMAINS"] * 4,
        *["SERVEKIT_CORS_ORIGINS"] * len(WRONG_ORIGINS),
        "SERVEKIT_STRUCTURED_OUTPUTS",
    ]
    assert not (tmp_path / "state").exists()


def test_a_bad_key_file_is_reported_with_its_lines(settings: GuardSettings, tmp_path: Path) -> None:
    """The operator's own file is checked before the engine starts."""
    path = tmp_path / "keys"
    path.touch(mode=0o600)
    path.write_text("short\n")
    with pytest.raises(ConfigurationError, match=f"{path}:1: error: a key must have"):
        prepare_guard(replace(settings, api_keys_file=path), tmp_path / "run")
    with pytest.raises(ConfigurationError, match="contradicts"):
        prepare_guard(replace(settings, api_keys_file=path, no_auth=True), tmp_path / "run")


def test_a_misspelt_configuration_does_not_load(settings: GuardSettings, tmp_path: Path) -> None:
    """An unknown key in the configuration ends the engine's start: no limit is ever silently absent."""
    guard = prepare_guard(settings, tmp_path / "run")
    fields = json.loads(guard.config_path.read_text())
    guard.config_path.write_text(json.dumps(fields | {"max_bodybytes": 1}))
    with pytest.raises(TypeError, match="max_bodybytes"):
        Rules.read(guard.config_path)


@pytest.mark.parametrize(
    ("host", "expected"), [("127.0.0.1", True), ("::1", True), ("[::1]", True), ("localhost", True)]
)
def test_a_loopback_address_is_known(host: str, *, expected: bool) -> None:
    """Addresses that only this host can reach are loopback."""
    assert is_loopback(host) is expected


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "10.0.0.1", "example.org"])  # noqa: S104 # under test
def test_any_other_address_is_not_loopback(host: str) -> None:
    """Addresses that others can reach, or might reach, are not loopback."""
    assert not is_loopback(host)


def test_the_default_limit_is_two_batches() -> None:
    """One batch runs and one waits: 2048 requests for the profile's 1024 sequences."""
    assert default_max_in_flight(1024) == 2048
