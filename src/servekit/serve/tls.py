"""TLS of the endpoint: vLLM's own, with the operator's certificate."""

import hashlib
import ssl
from dataclasses import dataclass
from pathlib import Path

from servekit.errors import ConfigurationError, Finding
from servekit.file_trouble import explain, or_elsewhere


@dataclass(frozen=True)
class Certificate:
    """A certificate chain and the private key that matches it, as two PEM files."""

    chain: Path
    key: Path
    fingerprint: str
    """SHA-256 of the first certificate, in hexadecimal: servekit checks it on its own connections."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments that make vLLM use it."""
        return ("--ssl-certfile", str(self.chain), "--ssl-keyfile", str(self.key))


def load_certificate(chain: Path | None, key: Path | None) -> Certificate | None:
    """Return the certificate of these files, or None if neither is given.

    Raises ConfigurationError if one is missing, cannot be read, or does not match the other.
    """
    if chain is None and key is None:
        return None
    if chain is None or key is None:
        missing, given = ("--tls-cert", "--tls-key") if chain is None else ("--tls-key", "--tls-cert")
        raise ConfigurationError([Finding("is missing", missing, remedy=f"{given} is given: both or neither")])
    mistakes = []
    for flag, path in (("--tls-cert", chain), ("--tls-key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            why = or_elsewhere(explain(error, path, private=flag == "--tls-key"), "name a PEM file")
            mistakes.append(Finding(subject=flag, file=str(path), **why))
    if mistakes:
        raise ConfigurationError(mistakes)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(chain, key, password="")
        der = ssl.PEM_cert_to_DER_cert(_first_certificate(chain.read_text(encoding="ascii", errors="replace")))
    except (ssl.SSLError, ValueError) as error:
        finding = Finding(
            f"not a certificate and its private key: {error}",
            "--tls-cert, --tls-key",
            remedy="name PEM files: the chain with the server's certificate first, and its key without a passphrase",
        )
        raise ConfigurationError([finding]) from error
    return Certificate(chain.absolute(), key.absolute(), hashlib.sha256(der).hexdigest())


def _first_certificate(pem: str) -> str:
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    return begin + pem.partition(begin)[2].partition(end)[0] + end
