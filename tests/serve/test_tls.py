"""The operator's certificate: used unchanged, or rejected with the reason."""

import subprocess
from pathlib import Path

import pytest

from servekit.errors import ConfigurationError
from servekit.serve.tls import load_certificate


def make_certificate(folder: Path, name: str = "server") -> tuple[Path, Path]:
    """Write a self-signed certificate and its key with the openssl program."""
    chain, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    subject = ["-subj", "/CN=llm.example.org", "-keyout", str(key), "-out", str(chain)]
    subprocess.run([*command, *subject], check=True, capture_output=True)
    return chain, key


def test_none_is_plain_http() -> None:
    """Without files there is no certificate."""
    assert load_certificate(None, None) is None


def test_pair_is_loaded(tmp_path: Path) -> None:
    """A chain and its key become vLLM's arguments, with the same fingerprint as openssl computes."""
    chain, key = make_certificate(tmp_path)
    made = load_certificate(chain, key)
    assert made is not None
    assert made.arguments == ("--ssl-certfile", str(chain), "--ssl-keyfile", str(key))
    command = ["openssl", "x509", "-in", str(chain), "-noout", "-fingerprint", "-sha256"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed.strip().rpartition("=")[2].replace(":", "").lower() == made.fingerprint


def test_one_without_the_other(tmp_path: Path) -> None:
    """A certificate without its key, or the reverse, is an error that names the missing flag."""
    chain, key = make_certificate(tmp_path)
    with pytest.raises(ConfigurationError, match="--tls-key: is missing; --tls-cert is given"):
        load_certificate(chain, None)
    with pytest.raises(ConfigurationError, match="--tls-cert: is missing; --tls-key is given"):
        load_certificate(None, key)


def test_unreadable_files(tmp_path: Path) -> None:
    """All missing files are reported together."""
    with pytest.raises(ConfigurationError) as caught:
        load_certificate(tmp_path / "a", tmp_path / "b")
    assert len(caught.value.findings) == 2


def test_pair_that_does_not_fit(tmp_path: Path) -> None:
    """A key of another certificate, or invalid PEM, is rejected before the engine is started."""
    chain, _ = make_certificate(tmp_path)
    _, other = make_certificate(tmp_path, "other")
    with pytest.raises(ConfigurationError, match="not a certificate and its private key"):
        load_certificate(chain, other)
    other.write_text("no key")
    with pytest.raises(ConfigurationError, match="not a certificate and its private key"):
        load_certificate(chain, other)
