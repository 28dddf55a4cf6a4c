"""What `check`, `plan` and `serve` share: the settings with their profile, and what is checked before a start."""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from servekit.errors import ConfigurationError, Finding, ServekitError, in_order, render
from servekit.settings import Settings, read_settings

if TYPE_CHECKING:
    from servekit.preflight.memory.memory_plan import MemoryPlan
    from servekit.profile import Profile
    from servekit.serve.plan import Plan

_ABOUT_THE_PLAN = ("memory-", "context-length", "gpu-capability", "fp8-activations")


@contextmanager
def loaded(flags: Mapping[str, Any]) -> "Iterator[tuple[Settings, Profile]]":
    """Give the settings of these flags and of the environment, and the profile that they name.

    What is raised inside names each setting as it was given.
    """
    from servekit.preflight.findings import unknown_skips
    from servekit.profile import load_profile

    settings = read_settings(flags, os.environ)
    unknown = unknown_skips(settings.skip)
    try:
        try:
            profile = load_profile(settings.config, deviate=settings.deviate)
        except ConfigurationError as error:
            raise ConfigurationError((*error.findings, *unknown)) from error
        if unknown:
            raise ConfigurationError(unknown)
        yield settings, profile
    except ServekitError as error:
        error.findings = tuple(map(settings.as_given, error.findings))
        raise


def verdict(output: str, profile: "Profile") -> str:
    """Return that the profile is valid, as text or as JSON."""
    from servekit.cli.output import profile_text

    if output == "text":
        return profile_text(profile)
    described = {"profile": str(profile.path), "arguments": dict(profile.arguments)}
    return json.dumps(described | {"findings": [note.as_dict() for note in profile.notes]}, indent=2)


def check_here(output: str, settings: Settings, profile: "Profile", *, hashes: bool) -> bool:
    """Print what keeps this plan from starting here, and return whether anything does."""
    from servekit.cli.output import memory_text
    from servekit.preflight.examine import examine
    from servekit.preflight.findings import has_errors
    from servekit.preflight.hub.hashes import check_hashes
    from servekit.serve.plan import build_plan
    from servekit.serve.start_check import check_start, occupied

    if output == "text":
        click.echo(verdict(output, profile))
    plan = build_plan(profile, settings, os.environ)
    check_start(plan)
    if plan.demo:
        from servekit.demo.build import ensure_demo_model

        ensure_demo_model(settings.cache_dir)
    found = examine(plan)
    damaged = check_hashes(plan.hub.snapshot if plan.hub else Path(plan.model), plan.model) if hashes else ()
    findings = [settings.as_given(each) for each in in_order((*occupied(plan), *found.findings, *damaged))]
    if output == "json":
        every = [finding.as_dict() for finding in (*findings, *profile.notes)]
        click.echo(json.dumps(found.as_dict() | {"findings": every}, indent=2))
    else:
        click.echo(render(findings, sys.stdout) or "no problems found")
        for finding in found.skipped:
            click.echo(f"skipped (--skip): {finding}")
        if found.memory:
            click.echo(f"\n{memory_text(found.memory)}")
    return has_errors(findings)


def plan_memory(plan: "Plan") -> "tuple[MemoryPlan | None, list[Finding]]":
    """Return the memory plan, or None, and what there is to say about it, or why there is none."""
    from servekit.preflight.examine import examine
    from servekit.preflight.findings import note

    if plan.demo and not Path(plan.model).exists():
        reason = "the demo checkpoint does not exist yet"
        return None, [note("memory-unplanned", reason, remedy="the first start builds it")]
    found = examine(dataclasses.replace(plan, addresses={}, engine="", hub=plan.hub and plan.hub.unasked))
    if found.memory is None:
        named = plan.gpu is not None  # by --gpu: the driver of this host is not the reason
        return None, [each for each in found.findings if not (named and each.name == "gpu-missing")]
    about_it = [each for each in found.findings if each.name.startswith(_ABOUT_THE_PLAN)]
    return found.memory, [each for each in about_it if each.name != "memory-bottleneck"]  # a row of the plan
