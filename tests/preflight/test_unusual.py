"""Unusual checkpoints as people publish them: what vLLM 0.20.2 serves is accepted, the rest refused with its reason."""

from typing import Any

import pytest

from servekit.preflight.checkpoint.model_path import wrong_path
from servekit.preflight.findings import Finding
from servekit.profile import resolve
from tests.preflight.conftest import VALUES
from tests.preflight.damage import Damage, cache_folder, gguf_file, group, text_only
from tests.preflight.unusual import BY_TARGET, UNUSUAL


def found(patient: Any, target: str) -> list[Finding]:
    """Return preflight's errors and warnings on the target."""
    _, findings = patient.inspect(target=target, arguments=resolve(VALUES, target=target))
    return [finding for finding in findings if finding.severity != "note"]


@pytest.mark.parametrize("target", ["cuda", "cpu"])
@pytest.mark.parametrize("damage", UNUSUAL)
def test_unusual_checkpoints_are_judged_as_vllm_judges_them(damage: str, patient: Any, target: str) -> None:
    """Each gets exactly its findings, on a GPU and on the CPU, and the message says why."""
    make, expected, words = UNUSUAL[damage]
    make(patient)
    findings = found(patient, target)
    assert {finding.name: str(finding.severity) for finding in findings} == expected
    assert not expected or any(words in finding.message for finding in findings), findings


@pytest.mark.parametrize("damage", BY_TARGET)
def test_kernels_differ_by_target(damage: str, patient: Any) -> None:
    """What has a kernel on a GPU may have none on the CPU, and the other way round."""
    make, *expected = BY_TARGET[damage]
    make(patient)
    for target, wanted in zip(("cuda", "cpu"), expected, strict=True):
        assert {finding.name: str(finding.severity) for finding in found(patient, target)} == wanted, target


def test_bf16_checkpoint_is_not_what_the_profile_promises(patient_bf16: Any) -> None:
    """A profile with quantization refuses a checkpoint without, and says so first."""
    assert patient_bf16.names() == ["quantization-missing"]


@pytest.mark.parametrize(
    ("make", "words", "remedy"),
    [
        (cache_folder, "the model is in its folder snapshots/COMMIT", f"models--owner--gemma/snapshots/{'a' * 40}"),
        (gguf_file, "is a file, not a folder", "give the folder that holds config.json and *.safetensors"),
    ],
)
def test_paths_that_are_no_checkpoint(patient: Any, make: Damage, words: str, remedy: str) -> None:
    """A file, and the hub cache's folder of a repository, are told from a folder that is not there."""
    make(patient)
    finding = wrong_path(patient.folder)
    assert finding is not None
    assert (finding.name, str(finding.severity)) == ("model-missing", "error")
    assert words in finding.message
    assert finding.remedy.endswith(remedy)


def test_folder_of_a_checkpoint_is_no_wrong_path(patient: Any) -> None:
    """A checkpoint's folder, and a path where nothing is, are left to the other checks."""
    assert wrong_path(patient.folder) is None
    assert wrong_path(patient.folder / "absent") is None


def test_text_only_model_is_accepted_without_images(patient: Any) -> None:
    """A Gemma4ForCausalLM has no towers and no processor, and names its layers otherwise."""
    text_only(patient)
    arguments = resolve({**VALUES, "limit-mm-per-prompt": dict.fromkeys(("image", "audio", "video"), 0)}, target="cuda")
    assert patient.names(arguments=arguments) == []
    group(targets=["model.layers.0.mlp.down_proj"])(patient)
    assert patient.names(arguments=arguments) == [
        "quantization-targets",
        "tensor-quantized",
    ]
