"""How plans and findings are written for a person."""

import shlex
from typing import TYPE_CHECKING

from servekit import ENGINE_VERSION
from servekit.preflight.findings import render
from servekit.preflight.memory.memory_report import render_plan

if TYPE_CHECKING:
    from servekit.preflight.docker.doctor import Diagnosis
    from servekit.preflight.examine import Examination
    from servekit.preflight.memory.memory_plan import MemoryPlan
    from servekit.profile import Profile
    from servekit.serve.plan import Plan


def profile_text(profile: "Profile") -> str:
    """Say that the profile is right, and where it deviates."""
    lines = [f"deviation: {each.key}: {each.used} instead of {each.wanted}" for each in profile.deviations]
    return "\n".join([*lines, f"{profile.path}: {len(profile.arguments)} settings, all good for vLLM {ENGINE_VERSION}"])


def examination_text(found: "Examination") -> str:
    """Write the findings, those passed over, and the memory plan."""
    parts = [render(found.findings)] if found.findings else ["checkpoint and host: nothing to say against a start"]
    if found.skipped:
        parts.append("passed over, as asked:\n" + render(found.skipped))
    if found.memory:
        parts.append(render_plan(found.memory))
    return "\n\n".join(parts)


def diagnosis_text(found: "Diagnosis") -> str:
    """Write what Docker said of itself, and the findings."""
    docker = found.docker
    said = (
        [f"Docker Engine {docker.engine}, Compose {docker.compose or 'none'}, {docker.architecture}"] if docker else []
    )
    said += [f"NVIDIA driver {found.driver}"] if found.driver else []
    return "\n".join([*said, render(found.findings) or "nothing to say against `docker compose up`"])


def memory_text(memory: "MemoryPlan | None", why: str) -> str:
    """Write the memory plan, or why there is none."""
    return f"memory\n{_indented(render_plan(memory))}" if memory else f"memory     not planned: {why or 'no GPU here'}"


def plan_text(plan: "Plan") -> str:
    """Write what would be started."""
    contract = ", ".join(f"{key}={value}" for key, value in plan.arguments.contract.items())
    rows = [
        ("target", plan.target.value),
        ("profile", str(plan.profile)),
        ("model", f"{plan.model}{' (embedded, built on first use)' if plan.demo else ''}"),
        ("served as", plan.served_name),
        ("endpoint", f"{plan.url}/v1, listening on {plan.host}:{plan.port}"),
        ("keys", "asked of every client" if not plan.guard.no_auth else "none: whoever reaches it may use the model"),
        ("observe", f"http://{plan.observe_host}:{plan.observe_port}"),
        ("deadlines", f"start {plan.start_s:g} s, drain {plan.drain_s} s, killed {plan.stop_s} s after SIGTERM"),
        ("contract", contract),
    ]
    rows += [("deviation", f"{d.key}: {d.used} instead of {d.wanted}: {d.reason}") for d in plan.deviations]
    rows += [("adjusted", f"{a.key}: {a.used}: {a.reason}") for a in plan.adjustments]
    lines = [f"{label:<11}{text}" for label, text in rows]
    lines += ["environment", *(f"  {name}={value}" for name, value in plan.environment.items())]
    if plan.inherited:
        lines += ["inherited environment", *(f"  {name}={value}" for name, value in plan.inherited.items())]
    if plan.withheld:
        lines += ["withheld from the engine", *(f"  {name}: {why}" for name, why in plan.withheld.items())]
    return "\n".join([*lines, "command", f"  {shlex.join(plan.argv)}"])


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
