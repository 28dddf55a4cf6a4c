"""Settings: flags over variables over defaults, and every mistake in one report."""

from pathlib import Path

import pytest

from servekit.errors import ConfigurationError, Finding
from servekit.logs import LogFormat
from servekit.settings import Settings, Target, flag_of, read_settings, variable_of


def test_defaults() -> None:
    """Without flags and variables, the settings are the card's profile on loopback."""
    settings = read_settings({}, {})
    assert settings.config == Path("vllm_config.yaml")
    assert (settings.host, settings.port, settings.observe_port) == ("127.0.0.1", 8000, 9400)
    assert settings.target is Target.AUTO


def test_flags_win_over_variables_and_empty_means_not_given() -> None:
    """A flag overrides its variable; an empty variable counts as unset."""
    environ = {"SERVEKIT_PORT": "8001", "SERVEKIT_LOG_FORMAT": "json", "SERVEKIT_HOST": "", "PORT": "1"}
    settings = read_settings({"port": "8002", "host": None, "deviate": ()}, environ)
    assert (settings.port, settings.log_format, settings.host) == (8002, LogFormat.JSON, "127.0.0.1")


def test_lists_and_paths() -> None:
    """A list is comma-separated in a variable; a path may begin with ~."""
    settings = read_settings({}, {"SERVEKIT_DEVIATE": "quantization, kv-cache-dtype", "SERVEKIT_CACHE_DIR": "~/c"})
    assert settings.deviate == ("quantization", "kv-cache-dtype")
    assert settings.cache_dir == Path.home() / "c"


def test_a_flag_given_again_may_hold_several() -> None:
    """`--deviate a,b --deviate c` means the same as the variable's list."""
    assert read_settings({"deviate": ("a, b", "c")}, {}).deviate == ("a", "b", "c")
    assert read_settings({"media_domains": "a.example,b.example"}, {}).media_domains == ("a.example", "b.example")


def test_findings_name_a_setting_as_it_was_given() -> None:
    """A finding about a setting names the variable where one was given, and the flag otherwise."""
    settings = read_settings({"port": "8001"}, {"SERVEKIT_PORT": "1", "SERVEKIT_ENGINE": "x", "SERVEKIT_SKIP": ""})
    names = ("--port", "SERVEKIT_PORT", "--engine", "SERVEKIT_ENGINE", "--skip", "SERVEKIT_SKIP", "--gpu", "GPU 0")
    given = [settings.as_given(Finding("is wrong", name)).subject for name in names]
    assert given == ["--port"] * 2 + ["SERVEKIT_ENGINE"] * 2 + ["--skip"] * 2 + ["--gpu", "GPU 0"]


def test_xdg_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """State and caches go to the folders of the XDG convention."""
    monkeypatch.setenv("XDG_STATE_HOME", "/s")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert (Settings().state_dir, Settings().cache_dir) == (Path("/s/servekit"), Path("/c/servekit"))


def test_all_mistakes_at_once() -> None:
    """Each mistake names its flag or variable, the value and the remedy."""
    with pytest.raises(ConfigurationError) as caught:
        read_settings({"port": "70000", "target": "tpu"}, {"SERVEKIT_DRAIN_S": "long", "SERVEKIT_PROT": "1"})
    text = str(caught.value)
    assert "SERVEKIT_PROT: no such setting; did you mean SERVEKIT_PORT?" in text
    assert "--port: input should be less than or equal to 65535 (got '70000')" in text
    assert "--target: input should be 'auto', 'cuda' or 'cpu' (got 'tpu')" in text
    assert "SERVEKIT_DRAIN_S: input should be a valid integer" in text
    assert len(caught.value.findings) == 4


def test_kubernetes_service_links() -> None:
    """Kubernetes' variables for a service named servekit are ignored, or explained if they collide with a setting."""
    links = {"SERVEKIT_SERVICE_HOST": "10.0.0.1", "SERVEKIT_PORT_8000_TCP": "tcp://10.0.0.1:8000"}
    assert read_settings({}, links).port == 8000
    with pytest.raises(ConfigurationError, match="enableServiceLinks: false"):
        read_settings({}, {"SERVEKIT_PORT": "tcp://10.0.0.1:8000"})


def test_names() -> None:
    """A field has one flag and one variable."""
    assert (flag_of("observe_port"), variable_of("observe_port")) == ("--observe-port", "SERVEKIT_OBSERVE_PORT")
