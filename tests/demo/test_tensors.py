"""Which tensors a checkpoint consists of."""

import re

import pytest

from servekit.demo.json_files import NOT_QUANTIZED
from servekit.demo.sizes import E4B, SIZES, TINY, Size
from servekit.demo.tensor_list import GROUP_SIZE, tensors


def test_e4b_is_as_large_as_the_published_checkpoints() -> None:
    """BF16 as google/gemma-4-E4B-it: 14.9 GiB; W4A16 about 9.4 GiB; without the audio tower vLLM loads 0.58 less."""
    full = tensors(E4B, quantized=False)
    assert sum(tensor.nbytes for tensor in full) == 15_992_314_836
    assert sum(tensor.nbytes for tensor in tensors(E4B, quantized=True)) == 10_136_063_540
    assert sum(tensor.nbytes for tensor in full if "audio" in tensor.name) / 2**30 == pytest.approx(0.575, abs=1e-3)


def test_e4b_has_24_layers_with_keys_and_values_of_their_own() -> None:
    """Of 42 layers every sixth is full attention and the last 18 share: 4 full and 20 sliding ones own a cache."""
    owners = E4B.text.layer_types[: E4B.text.layers - E4B.text.kv_shared_layers]
    assert (owners.count("full_attention"), owners.count("sliding_attention")) == (4, 20)
    assert E4B.text.layer_types[-1] == "full_attention"


@pytest.mark.parametrize("size", SIZES)
def test_shared_layers_carry_keys_and_values_all_the_same(size: Size) -> None:
    """vLLM's strict loader requires them in every layer."""
    names = {tensor.name for tensor in tensors(SIZES[size], quantized=False)}
    for layer in range(SIZES[size].text.layers):
        root = f"model.language_model.layers.{layer}.self_attn"
        assert {f"{root}.{part}.weight" for part in ("k_proj", "v_proj", "k_norm")} <= names


@pytest.mark.parametrize("size", SIZES)
def test_every_quantized_layer_has_packed_weights_scales_and_shape(size: Size) -> None:
    """Eight weights to a word, one scale per group of 128 inputs, and every input a multiple of that group."""
    by_name = {tensor.name: tensor for tensor in tensors(SIZES[size], quantized=True)}
    roots = [name.removesuffix("_packed") for name in by_name if name.endswith(".weight_packed")]
    assert len(roots) == 7 * SIZES[size].text.layers
    originals = {tensor.name: tensor.shape for tensor in tensors(SIZES[size], quantized=False)}
    for root in roots:
        outputs, inputs = originals[root]
        assert inputs % GROUP_SIZE == 0
        assert by_name[f"{root}_packed"].shape == (outputs, inputs // 8)
        assert by_name[f"{root}_scale"].shape == (outputs, inputs // GROUP_SIZE)
        assert by_name[f"{root}_shape"].fill.values == (outputs, inputs)  # type: ignore[union-attr]


def test_exactly_what_the_ignore_list_leaves_is_quantized() -> None:
    """The configuration's ignore list and the tensors agree on every linear layer of the decoder."""
    quantized = {tensor.name for tensor in tensors(TINY, quantized=True)}
    patterns = [re.compile(entry.removeprefix("re:")) for entry in NOT_QUANTIZED]
    for tensor in tensors(TINY, quantized=False):
        is_linear = tensor.name.endswith(("proj.weight", "gate.weight", "projection.weight"))
        ignored = any(pattern.match(tensor.name) for pattern in patterns)
        assert (tensor.name not in quantized) == (is_linear and not ignored), tensor.name


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("quantized", [True, False])
def test_names_are_unique(size: Size, *, quantized: bool) -> None:
    """No tensor is listed twice."""
    names = [tensor.name for tensor in tensors(SIZES[size], quantized=quantized)]
    assert len(names) == len(set(names))
