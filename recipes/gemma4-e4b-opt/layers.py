"""Runs samples through Gemma 4's decoder layers one at a time, with the keys and values that its layers share.

The last layers of an E model have no K and V: they use those of the last earlier layer of their kind. llm-compressor's
own sequential pipeline loses them (0.12: KeyError 'sliding_attention'), because it traces each layer into a graph that
starts with an empty `shared_kv_states`. Here each sample keeps the dictionary that the model itself made for it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Sample:
    """What the model hands to its first layer for one text, and what is computed from there."""

    start: torch.Tensor
    per_layer_inputs: list[torch.Tensor]
    arguments: list[dict[str, Any]]
    """Masks, positions and the like, for each layer."""
    hidden: torch.Tensor
    shared: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """K and V by kind of layer; each source layer replaces its own."""


class Calibration:
    """The samples on their way through the model. All tensors stay on the CPU but those of the current call."""

    def __init__(self, model: Any, texts: list[list[int]], device: torch.device) -> None:
        self.layers, self.device = model.model.language_model.layers, device
        self.samples = [_capture(model, ids) for ids in texts]

    def rewind(self) -> None:
        """Begin again at the first layer."""
        for sample in self.samples:
            sample.hidden, sample.shared = sample.start, {}

    def run(self, index: int, *, keep: bool) -> None:
        """Run every sample through one layer, which is on the device; `keep` its output for the next layer."""
        for sample in self.samples:
            hidden = self.forward(index, sample)
            if keep:
                sample.hidden = hidden

    def forward(self, index: int, sample: Sample) -> torch.Tensor:
        """Return a layer's output for one sample. Raises KeyError if a layer finds no K and V to share."""
        layer, arguments = self.layers[index], sample.arguments[index]
        attention = layer.self_attn
        shared = sample.shared.get(attention.layer_type)
        if attention.is_kv_shared_layer:
            assert shared is not None, f"layer {index} has no K and V to share"
            assert shared[0].shape[-2] == sample.hidden.shape[1], f"layer {index}: K and V of another sample"
        with torch.no_grad():
            output = layer(
                sample.hidden.to(self.device),
                sample.per_layer_inputs[index].to(self.device),
                shared_kv_states=sample.shared,
                **_moved(arguments, self.device),
            )
        if attention.is_kv_shared_layer:
            assert sample.shared[attention.layer_type] is shared, f"layer {index} has replaced the K and V it shares"
        sample.shared.update(_moved(dict(sample.shared), torch.device("cpu")))
        return output.cpu()


def check_sharing(model: Any, ids: list[int]) -> None:
    """Compare this way through the model with the model's own, on the CPU, before anything is changed.

    Both must give the same K, V and output, bit for bit, and `use_cache` must make no difference: implementations of
    Gemma 4 exist that compute nonsense without a cache. Raises AssertionError.
    """
    language_model = model.model.language_model
    ends: list[torch.Tensor] = []
    hook = language_model.norm.register_forward_pre_hook(lambda _, inputs: ends.append(inputs[0]))
    with torch.no_grad():
        expected, cached = (
            model(**_inputs(ids), use_cache=use_cache, return_shared_kv_states=True, logits_to_keep=1).shared_kv_states
            for use_cache in (False, True)
        )
    hook.remove()
    run = Calibration(model, [ids], torch.device("cpu"))
    for index in range(len(run.layers)):
        run.run(index, keep=True)
    (sample,) = run.samples
    assert torch.equal(ends[0], ends[1]), "use_cache changes what the model computes"
    assert torch.equal(sample.hidden, ends[0]), "the layers one by one give another output than the model"
    assert expected.keys() == sample.shared.keys()
    for kind, pair in expected.items():
        for mine, theirs, with_cache in zip(sample.shared[kind], pair, cached[kind], strict=True):
            assert torch.equal(mine, theirs), f"other K and V than the model's ({kind})"
            assert torch.equal(with_cache, theirs), f"use_cache changes K and V ({kind})"


def _capture(model: Any, ids: list[int]) -> Sample:
    """Run the model without its layers, and record what it hands to each of them."""
    text = model.model.language_model
    calls: list[_Call] = []
    with _replaced(text, torch.nn.ModuleList(_Recorder(calls) for _ in text.layers)), torch.no_grad():
        model.model(**_inputs(ids), use_cache=False)
    start = calls[0][0]
    return Sample(start, [each for _, each, _ in calls], [arguments for _, _, arguments in calls], hidden=start)


_Call = tuple[torch.Tensor, torch.Tensor, dict[str, Any]]


class _Recorder(torch.nn.Module):
    """Stands for a decoder layer: records its arguments and returns its input."""

    def __init__(self, calls: list["_Call"]) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, hidden_states: torch.Tensor, per_layer_input: torch.Tensor, **arguments: Any) -> torch.Tensor:
        del arguments["shared_kv_states"]
        assert arguments.pop("past_key_values") is None, "use_cache is on"
        self.calls.append((hidden_states, per_layer_input.clone(), arguments))
        return hidden_states


@contextmanager
def _replaced(text: Any, layers: torch.nn.ModuleList) -> Iterator[None]:
    original, text.layers = text.layers, layers
    try:
        yield
    finally:
        text.layers = original


def _inputs(ids: list[int]) -> dict[str, torch.Tensor]:
    tokens = torch.tensor([ids])
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "mm_token_type_ids": torch.zeros_like(tokens),
    }


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(each, device) for key, each in value.items()}
    return tuple(_moved(each, device) for each in value) if isinstance(value, tuple) else value
