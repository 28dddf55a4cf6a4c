"""How findings about quantization_config name the section, which may be a part of text_config."""

from collections.abc import Callable

from servekit.preflight.checkpoint.config_file import CONFIG
from servekit.preflight.findings import Finding

Say = Callable[..., Finding]
"""Makes a finding about a key of the section: severity, name, key, message, remedy."""


def saying(section: str) -> Say:
    """Return what makes findings about the section."""

    def say(report: Say, name: str, key: str, message: str, remedy: str = "") -> Finding:
        return report(name, message, file=CONFIG, key=f"{section}.{key}".rstrip("."), remedy=remedy)

    return say
