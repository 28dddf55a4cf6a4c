"""What a search needs beforehand: the plan of the profile as it is, and the candidates that preflight lets start."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from servekit import ENGINE_VERSION, __version__
from servekit.demo.build import ensure_demo_model
from servekit.errors import ConfigurationError, Finding, PreflightError, ServekitError
from servekit.measure.bench.loads import SHAPES, Load
from servekit.nvml import NVML
from servekit.preflight.examine import examine
from servekit.preflight.findings import has_errors
from servekit.preflight.host.gpus import visible_gpus
from servekit.preflight.memory.memory_plan import MemoryPlan
from servekit.profile import Profile, load_profile
from servekit.serve.plan import Plan, build_plan
from servekit.serve.start_check import check_start
from servekit.settings import Settings, Target
from servekit.tune.candidates import AS_IT_IS, Candidate, LeftOut, Situation, propose, unchanged
from servekit.tune.profile_text import write_candidate

IMAGE_TOKENS = 280
"""Of one image of the loads, at most: Gemma 4's processor makes 256 tokens of it, and some around them."""


@dataclass(frozen=True)
class Prepared:
    """A search that may begin."""

    plan: Plan
    profile: Profile
    candidates: Sequence[Candidate]
    left_out: Sequence[LeftOut]


def prepare(
    profile: Profile, settings: Settings, goal: str, loads: Sequence[Load], own: Sequence[Path], folder: Path
) -> Prepared:
    """Check the profile as it is, and choose the candidates: those in the files `own`, or else servekit's.

    Writes each candidate's file into `folder`. Raises ConfigurationError and PreflightError where the profile as it is
    would not start here, and ConfigurationError where `own` is not valid or the goal cannot be measured.
    """
    plan = build_plan(profile, settings, os.environ)
    check_start(plan)
    if plan.demo:
        ensure_demo_model(settings.cache_dir)
    found = examine(_anywhere(plan))
    if has_errors(found.findings):
        raise PreflightError(found.findings)
    if goal == "energy" and plan.target is not Target.CUDA:
        remedy = "choose another goal, or run it where NVML reads the GPU"
        raise ConfigurationError(
            [Finding("needs an NVIDIA GPU: energy is not measured here", "--goal", got=goal, remedy=remedy)]
        )
    if own:
        return Prepared(plan, profile, (unchanged(), *_own(own, settings, profile)), ())
    proposed, left_out = propose(_situation(plan, settings, goal, loads, found.memory))
    chosen, left = [proposed[0]], list(left_out)
    for candidate in proposed[1:]:
        planned = _planned(candidate, profile, settings, folder, plan, found.memory)
        chosen.append(planned) if isinstance(planned, Candidate) else left.append(planned)
    return Prepared(plan, profile, tuple(chosen), tuple(left))


def candidate_settings(candidate: Candidate, settings: Settings) -> Settings:
    """Return the settings with those that a candidate changes."""
    return Settings.model_validate(settings.model_dump() | dict(candidate.settings))


def question(prepared: Prepared, goal: str, loads: Sequence[Load], lengths: Mapping[str, float]) -> dict[str, Any]:
    """Return all that must be the same for figures to be comparable: the folder of a search holds one such question."""
    plan = prepared.plan
    gpus = visible_gpus(plan.survey) if plan.survey else ()
    return {
        "goal": goal,
        "loads": [load.name for load in loads],
        **lengths,
        "profile": dict(plan.values),
        "candidates": [[each.name, dict(each.changes), dict(each.settings)] for each in prepared.candidates],
        "model": [plan.model, *_content(plan)],
        "engine": [plan.engine, ENGINE_VERSION, __version__],
        "engine's environment": {name: text for name, text in plan.inherited.items() if name.startswith("VLLM_")},
        "GPU": [[gpu.uuid, gpu.name, NVML.read(gpu.uuid, ("power_limit_w",)).power_limit_w] for gpu in gpus],
        "driver": plan.survey.driver if plan.survey else None,
    }


def _anywhere(plan: Plan) -> Plan:
    """Return the plan without what is checked before each start: who uses the ports and the GPU."""
    return replace(plan, addresses={}, skip=(*plan.skip, "gpu-memory", "gpu-processes"))


def _situation(
    plan: Plan, settings: Settings, goal: str, loads: Sequence[Load], memory: MemoryPlan | None
) -> Situation:
    shapes = [SHAPES[load.kind] for load in loads]
    return Situation(
        goal=goal,
        arguments=plan.arguments,
        values=plan.values,
        settings=settings,
        memory=memory,
        on_gpu=plan.target is Target.CUDA,
        streams=max(load.streams for load in loads),
        tokens=max(each.tokens_in + each.images * IMAGE_TOKENS + each.tokens_out for each in shapes),
        images=any(each.images for each in shapes),
        cores=len(os.sched_getaffinity(0)),
    )


def _own(files: Sequence[Path], settings: Settings, profile: Profile) -> list[Candidate]:
    """Return the operator's own candidates; raise ConfigurationError for each that is not valid, all at once."""
    found: list[Candidate] = []
    mistakes: list[Finding] = []
    for path in files:
        if path.stem in (AS_IT_IS, *(each.name for each in found)):
            mistakes.append(Finding("a candidate has this name already", file=str(path), remedy="rename the file"))
        try:
            arguments = load_profile(path, deviate=settings.deviate).arguments
        except ServekitError as error:
            mistakes += error.findings
            continue
        if gone := [key for key in profile.arguments if key not in arguments]:
            remedy = f"write the key with the value that it shall have, as {profile.path} does"
            mistakes.append(Finding("is missing", file=str(path), key=gone[0], remedy=remedy))
        changed = {key: value for key, value in arguments.items() if profile.arguments.get(key) != value}
        found.append(Candidate(path.stem, f"the operator's own file {path}", changed))
    if mistakes:
        raise ConfigurationError(mistakes)
    return found


def _planned(
    candidate: Candidate, profile: Profile, settings: Settings, folder: Path, base: Plan, before: MemoryPlan | None
) -> Candidate | LeftOut:
    """Return the candidate with what its plan says about memory; or why it cannot start here, or need not."""
    try:
        path = folder / f"{candidate.name}.yaml"
        changed = write_candidate(path, profile, candidate.changes, deviate=settings.deviate)
        plan = build_plan(changed, candidate_settings(candidate, settings), os.environ)
        found = examine(_anywhere(plan))
    except ServekitError as error:
        return LeftOut(candidate.name, error.findings[0].message)
    if replace(plan, profile=base.profile, as_given=base.as_given, notes=base.notes) == base:
        return LeftOut(candidate.name, "is what the profile as it is comes to here")
    if has_errors(found.findings):
        return LeftOut(candidate.name, found.findings[0].message)
    now = found.memory
    if before and now and now.pool_tokens != before.pool_tokens:
        cache = f"the plan has a KV cache of {now.pool_tokens:,} tokens instead of {before.pool_tokens:,}"
        return replace(candidate, reason=f"{candidate.reason}; {cache}")
    return candidate


def _content(plan: Plan) -> list[Any]:
    """Return what identifies the checkpoint's files without reading them."""
    if plan.hub:
        return [plan.hub.commit]
    files = [each.stat() for each in Path(plan.model).rglob("*") if each.is_file()]
    return [sum(each.st_size for each in files), max((each.st_mtime_ns for each in files), default=0)]
