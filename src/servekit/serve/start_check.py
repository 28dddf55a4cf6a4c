"""What keeps `servekit serve` from starting a plan beside preflight's findings; `servekit check` reports the same."""

import os
import socket
from collections.abc import Iterator

from servekit.errors import ConfigurationError, Finding
from servekit.file_trouble import find_trouble, or_elsewhere
from servekit.serve.guard import guard_mistakes
from servekit.serve.plan import Plan
from servekit.serve.run_lock import held_by_another


def check_start(plan: Plan) -> None:
    """Raise ConfigurationError with what is wrong with settings, keys and folders. Changes nothing."""
    mistakes = [*_check_model(plan), *_check_ports(plan), *guard_mistakes(plan.guard)]
    for folder in (plan.guard.state_dir, plan.run_dir):
        if why := find_trouble(folder, "rwx"):
            mistakes.append(Finding(file=str(folder), **or_elsewhere(why)))
            break
    if mistakes:
        raise ConfigurationError(mistakes)


def occupied(plan: Plan) -> Iterator[Finding]:
    """Yield what another process holds that servekit itself needs: the folder of the run, the observe port."""
    yield from held_by_another(plan.run_dir)
    host, port = plan.observe_host, plan.observe_port
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        yield unobservable(host, port, error)


def unobservable(host: str, port: int, error: OSError) -> Finding:
    """Return the finding of an observe port that cannot be bound."""
    return Finding(
        f"servekit's own server cannot listen here: {error.strerror}",
        f"{host}:{port}",
        remedy="choose another --observe-host or --observe-port, or stop what listens there",
    )


def _check_model(plan: Plan) -> Iterator[Finding]:
    if "://" in plan.model:
        remedy = "give a folder, or an id such as owner/name; HF_ENDPOINT names another hub than huggingface.co"
        yield Finding("is a URL, and must be a folder or a hub id", "--model", got=plan.model, remedy=remedy)
    elif os.path.isfile(plan.model):  # noqa: PTH113 - Path.is_file raises where this user may not look
        yield Finding("is a file, not a folder", "--model", got=plan.model, remedy="give the folder that holds it")


def _check_ports(plan: Plan) -> Iterator[Finding]:
    hosts = {plan.host, plan.observe_host}
    if plan.port == plan.observe_port and (len(hosts) == 1 or hosts & {"0.0.0.0", "::"}):  # noqa: S104
        yield Finding("is the endpoint's port too", "--observe-port", got=str(plan.port), remedy="choose another")
