"""Plans and findings as text for people."""

import shlex
import sys
import textwrap
from typing import TYPE_CHECKING

from servekit import ENGINE_VERSION
from servekit.errors import render
from servekit.preflight.memory.memory_report import render_plan

if TYPE_CHECKING:
    from servekit.preflight.docker.doctor import Diagnosis
    from servekit.preflight.memory.memory_plan import MemoryPlan
    from servekit.profile import Profile
    from servekit.serve.plan import Plan


def profile_text(profile: "Profile") -> str:
    """Write that the profile is valid, and its deviations."""
    lines = [f"deviation: {each.key}: {each.used} instead of {each.wanted}" for each in profile.deviations]
    valid = f"{profile.path}: {len(profile.arguments)} settings, all valid for vLLM {ENGINE_VERSION}"
    return "\n".join([*lines, *map(str, profile.notes), valid])


def diagnosis_text(found: "Diagnosis") -> str:
    """Write Docker's versions, the driver's, and the findings."""
    docker = found.docker
    lines = [f"NVIDIA driver {found.driver}"] if found.driver else []
    if docker:
        lines.insert(0, f"Docker Engine {docker.engine}, Compose {docker.compose or 'none'}, {docker.architecture}")
    return "\n".join([*lines, render(found.findings, sys.stdout) or "no problems found"])


def memory_text(memory: "MemoryPlan | None", why: str = "") -> str:
    """Write the memory plan, or why there is none."""
    if memory is None:
        return f"memory     not planned: {why or 'no GPU here'}"
    return f"memory\n{textwrap.indent(render_plan(memory), '  ')}"


def plan_text(plan: "Plan") -> str:
    """Write what would be started."""
    contract = ", ".join(f"{key}={value}" for key, value in plan.arguments.contract.items())
    rows = [
        ("target", plan.target.value),
        ("profile", str(plan.profile)),
        ("model", f"{plan.model}{' (embedded, built on first use)' if plan.demo else ''}"),
        ("served as", plan.served_name),
        ("endpoint", f"{plan.url}/v1, listening on {plan.host}:{plan.port}"),
        ("keys", "required of every client" if not plan.guard.no_auth else "none: everyone who can connect has access"),
        ("observe", f"http://{plan.observe_host}:{plan.observe_port}"),
        ("deadlines", f"start {plan.start_s:g} s, drain {plan.drain_s} s, killed {plan.stop_s} s after SIGTERM"),
        ("contract", contract),
    ]
    rows += [("deviation", f"{d.key}: {d.used} instead of {d.wanted}: {d.reason}") for d in plan.deviations]
    rows += [("note", f"{note.key} {note.message}") for note in plan.notes]
    rows += [("adjusted", f"{a.key}: {a.used}: {a.reason}") for a in plan.adjustments]
    lines = [f"{label:<11}{text}" for label, text in rows]
    for title, variables in (("environment", plan.environment), ("inherited environment", plan.inherited)):
        lines += [title, *(f"  {name}={value}" for name, value in variables.items())] if variables else []
    if plan.withheld:
        lines += ["withheld from the engine", *(f"  {name}: {why}" for name, why in plan.withheld.items())]
    return "\n".join([*lines, "command", f"  {shlex.join(plan.argv)}"])
