"""Which profiles are tried, by reasons: within the contract, at most a dozen, and valid for servekit itself."""

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo

from servekit.cli.checks import plan_memory
from servekit.measure.bench.loads import Load
from servekit.preflight.memory.gpu_models import parse_gpu_model
from servekit.profile import CONTRACT, load_profile
from servekit.serve.plan import build_plan
from servekit.settings import Settings, Target
from servekit.tune import candidates
from servekit.tune.candidates import AS_IT_IS, Candidate, Situation, joined, propose
from servekit.tune.goals import GOALS
from servekit.tune.preparation import _situation
from servekit.tune.profile_text import write_candidate


def situation(root: Path, goal: str, *loads: Load, cores: int = 8) -> Situation:
    """Return what is known about the shipped profile on an L4."""
    profile, settings = load_profile(root / "vllm_config.yaml"), Settings(target=Target.CUDA)
    plan = build_plan(profile, settings, {}, gpu=parse_gpu_model("l4"), survey=lambda: None)
    found = _situation(plan, settings, goal, loads, plan_memory(plan)[0])
    assert found.memory is not None
    memory = replace(found.memory, typical_requests=339)  # whatever else the plan of a later servekit finds room for
    return replace(found, cores=cores, memory=memory)


def names(found: Situation) -> list[str]:
    """Return the names of the candidates that change the profile."""
    return [each.name for each in propose(found)[0] if not each.settings]


def test_candidates_on_an_l4(root: Path) -> None:
    """Few requests at once need neither more cache nor more graphs; many need both, and images need threads."""
    few = situation(root, "throughput", Load("text", 128, "sampled"))
    assert names(few) == [AS_IT_IS, "batched-8192", "graphs-128", "batched-16384", "batched-2048"]
    many = situation(root, "throughput", Load("text", 600, "sampled"), Load("images-1", 32, "sampled"))
    expected = ["batched-8192", "renderers-4", "utilization-0.93", "graphs-1024", "batched-16384", "batched-2048"]
    assert names(many) == [AS_IT_IS, *expected]
    latency = situation(root, "latency", Load("text", 8, "sampled"))
    assert names(latency) == [AS_IT_IS, "graphs-64", "batched-2048", "interactivity", "batched-8192"]


def test_what_is_not_tried_has_a_reason(root: Path) -> None:
    """Each idea that does not apply is told with the figure that decides."""
    left = {each.name: each.why for each in propose(situation(root, "energy", Load("text", 8, "sampled"), cores=2))[1]}
    assert left["utilization"] == "the KV cache holds 339 requests of 1,000 tokens, more than these loads need"
    assert left["renderers"] == "the loads have no images"
    images = propose(situation(root, "energy", Load("images-3", 8, "sampled"), cores=2))[1]
    assert ("renderers", "needs 4 cores; this host has 2") in [(each.name, each.why) for each in images]


@pytest.mark.parametrize("goal", GOALS)
def test_every_candidate_is_valid_and_keeps_the_contract(root: Path, tmp_path: Path, goal: str) -> None:
    """servekit's own profile code accepts each file, and each has the contract's values and a reason."""
    base = load_profile(root / "vllm_config.yaml")
    found = propose(situation(root, goal, Load("text", 600, "sampled"), Load("images-3", 600, "sampled")))[0]
    assert 4 < len(found) <= candidates.MOST
    for each in found:
        profile = write_candidate(tmp_path / f"{each.name}.yaml", base, each.changes)
        assert not each.changes.keys() & CONTRACT.keys()
        assert profile.arguments == {**base.arguments, **each.changes}
        assert profile.deviations == ()
        assert len(each.reason.split()) > 7


class Place(StrEnum):
    """Where something is."""

    AUTO = "auto"
    HOST = "host"
    GPU = "gpu"


@pytest.mark.parametrize(
    ("name", "kind", "now", "expected"),
    [
        ("embeddings", Place, Place.AUTO, ["host", "gpu"]),
        ("embeddings", Place, Place.HOST, ["gpu"]),
        ("flashinfer_sampler", bool, False, ["true"]),
        ("api_servers", int, 1, ["2", "4"]),
    ],
)
def test_settings_of_servekit_are_found_in_its_catalogue(
    monkeypatch: pytest.MonkeyPatch, root: Path, name: str, kind: Any, now: object, expected: list[str]
) -> None:
    """Settings that a later servekit has are tried with their other values, without a change here."""
    found = situation(root, "throughput", Load("text", 8, "sampled"))
    monkeypatch.setitem(Settings.model_fields, name, FieldInfo(annotation=kind))
    object.__setattr__(found.settings, name, now)
    tried = [each for each in propose(found)[0] if name in each.settings]
    assert [each.settings for each in tried] == [{name: value} for value in expected]
    assert [each.name for each in tried] == [f"{name.replace('_', '-')}-{value}" for value in expected]


def test_two_changes_together() -> None:
    """Changes of different keys are joined; two values of one key are not."""
    first, second = Candidate("a", "r", {"x": 1}), Candidate("b", "r", {"y": 2}, {"z": "3"})
    both = joined(first, second)
    assert both is not None
    assert (both.name, both.changes, both.settings) == ("a+b", {"x": 1, "y": 2}, {"z": "3"})
    assert joined(first, Candidate("c", "r", {"x": 2})) is None
