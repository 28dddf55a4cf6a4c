"""One GET, for probes, status and metrics."""

import urllib.error
import urllib.request


def get(url: str, timeout_s: float = 10) -> tuple[int, str]:
    """Return status and body; status 0 if there is no answer."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""
