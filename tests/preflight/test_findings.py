"""Findings: their order, their text, what skipping does."""

import ast
import json
from pathlib import Path

import pytest

from servekit.preflight.catalogue import CATALOGUE
from servekit.preflight.checkpoint.architectures import KNOWN_ARCHITECTURES, MULTIMODAL_ARCHITECTURES
from servekit.preflight.findings import (
    Finding,
    Severity,
    error,
    has_errors,
    in_order,
    note,
    render,
    unknown_names,
    warning,
    without,
)

MIXED = (
    note("hub-download", "will be downloaded"),
    warning("gpu-processes", "two others", subject="NVIDIA L4"),
    error("port-taken", "8000 is taken", remedy="choose another", subject="--port"),
)


def test_errors_come_first() -> None:
    """Findings are shown by weight."""
    assert [finding.severity for finding in in_order(MIXED)] == [Severity.ERROR, Severity.WARNING, Severity.NOTE]


def test_text_names_everything() -> None:
    """A person sees the severity, the name to skip it by, the subject, the message and the remedy."""
    assert render(MIXED).splitlines() == [
        "error   port-taken: --port: 8000 is taken",
        "        -> choose another",
        "warning gpu-processes: NVIDIA L4: two others",
        "note    hub-download: will be downloaded",
    ]
    assert str(MIXED[2]) == "error port-taken: --port: 8000 is taken; choose another"


def test_json_has_plain_strings() -> None:
    """A finding becomes an object of strings."""
    assert json.loads(json.dumps(MIXED[2].as_dict())) == {
        "name": "port-taken",
        "severity": "error",
        "subject": "--port",
        "message": "8000 is taken",
        "remedy": "choose another",
    }


def test_skipping_splits_and_keeps() -> None:
    """Skipped findings do not count, but the caller gets them for its log."""
    kept, skipped = without(MIXED, {"port-taken"})
    assert has_errors(MIXED)
    assert not has_errors(kept)
    assert [finding.name for finding in skipped] == ["port-taken"]


def test_wrong_names_to_skip_are_found() -> None:
    """A name no finding has is told, in the order given."""
    assert unknown_names(["gpu-ecc", "gpu-ec", "x"]) == ("gpu-ec", "x")


def test_findings_outside_the_catalogue_cannot_be_made() -> None:
    """A name must stand in the catalogue, else nobody could look it up."""
    with pytest.raises(ValueError, match="no catalogue"):
        Finding("gpu-smoke", Severity.ERROR, "it smokes")


def test_every_name_of_the_catalogue_is_used(root: Path) -> None:
    """The catalogue lists no name that no code gives."""
    sources = [path for path in (root / "src/servekit/preflight").rglob("*.py") if path.name != "catalogue.py"]
    code = "".join(path.read_text() for path in sources)
    assert [name for name in CATALOGUE if f'"{name}"' not in code] == []


def test_architectures_are_those_of_the_installed_engine(root: Path) -> None:
    """The list of known architectures is that of vLLM 0.20.2's registry."""
    registry = next(
        (root / ".venv-engine").glob("lib/python3*/site-packages/vllm/model_executor/models/registry.py"), None
    )
    if registry is None:
        pytest.skip("needs .venv-engine")
    names: dict[str, set[object]] = {"_TEXT_GENERATION_MODELS": set(), "_MULTIMODAL_MODELS": set()}
    for statement in ast.parse(registry.read_text()).body:
        if isinstance(statement, ast.Assign) and (name := getattr(statement.targets[0], "id", "")) in names:
            assert isinstance(statement.value, ast.Dict)
            names[name].update(key.value for key in statement.value.keys if isinstance(key, ast.Constant))
    assert set().union(*names.values()) == KNOWN_ARCHITECTURES
    assert names["_MULTIMODAL_MODELS"] == MULTIMODAL_ARCHITECTURES
