"""Damages to a checkpoint, for the tests: each is a function of the patient."""

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from typing import Any

from tests.preflight.conftest import write_shard

LAYER = "model.language_model.layers"
SHARD = "model.safetensors"
INDEX = "model.safetensors.index.json"
Damage = Callable[[Any], object]
Tensors = dict[str, tuple[str, list[int], bytes]]
ADAPTER = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"


def quantization(**changes: Any) -> Damage:
    """Alter keys of quantization_config."""
    return lambda patient: patient.config(lambda config: config["quantization_config"].update(changes))


def weights(**changes: Any) -> Damage:
    """Alter keys of the weights' scheme."""

    def change(config: dict[str, Any]) -> None:
        (group,) = config["quantization_config"]["config_groups"].values()
        group["weights"].update(changes)

    return lambda patient: patient.config(change)


def text(**changes: Any) -> Damage:
    """Alter keys of text_config."""
    return lambda patient: patient.config(lambda config: config["text_config"].update(changes))


def without_key(*path: str) -> Damage:
    """Remove a key of config.json."""

    def change(config: dict[str, Any]) -> None:
        for key in path[:-1]:
            config = config[key]
        del config[path[-1]]

    return lambda patient: patient.config(change)


def without_file(name: str) -> Damage:
    """Delete a file."""
    return lambda patient: (patient.folder / name).unlink()


def content(name: str, data: bytes) -> Damage:
    """Replace a file's bytes."""
    return lambda patient: (patient.folder / name).write_bytes(data)


def cut(size: int) -> Damage:
    """Keep the first bytes of the shard."""
    return lambda patient: content(SHARD, (patient.folder / SHARD).read_bytes()[:size])(patient)


def without_tensor(name: str) -> Damage:
    """Remove a tensor from the shard."""
    return lambda patient: patient.tensors(lambda tensors: tensors.pop(name))


def with_tensor(name: str, dtype: str, shape: list[int], data: bytes) -> Damage:
    """Add a tensor to the shard."""
    return lambda patient: patient.tensors(lambda tensors: tensors.update({name: (dtype, shape, data)}))


def without_part(part: str) -> Damage:
    """Remove all tensors with `part` in their names."""

    def change(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if part in name]:
            del tensors[name]

    return lambda patient: patient.tensors(change)


def header(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Alter the shard's header and keep its data."""

    def damage(patient: Any) -> None:
        raw = (patient.folder / SHARD).read_bytes()
        length = int.from_bytes(raw[:8], "little")
        entries = json.loads(raw[8 : 8 + length])
        change(entries)
        head = json.dumps(entries).encode()
        content(SHARD, len(head).to_bytes(8, "little") + head + raw[8 + length :])(patient)

    return damage


def first_entry(**changes: Any) -> Damage:
    """Alter the header's entry of the first tensor."""
    return header(
        lambda entries: next(value for key, value in entries.items() if key != "__metadata__").update(changes)
    )


def indexed(change: Callable[[dict[str, str]], object]) -> Damage:
    """Add an index of the one shard, altered."""

    def damage(patient: Any) -> None:
        raw = (patient.folder / SHARD).read_bytes()
        names = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        weight_map = {name: SHARD for name in names if name != "__metadata__"}
        change(weight_map)
        (patient.folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return damage


def plain_instead_of_packed(patient: Any) -> None:
    """Store one quantized layer as a plain weight."""
    module = f"{LAYER}.0.mlp.down_proj"

    def change(tensors: dict[str, Any]) -> None:
        _, (rows, columns), _ = tensors[f"{module}.weight_packed"]
        for suffix in ("weight_packed", "weight_scale", "weight_shape"):
            del tensors[f"{module}.{suffix}"]
        tensors[f"{module}.weight"] = ("BF16", [rows, columns * 8], bytes(rows * columns * 8 * 2))

    patient.tensors(change)


def several_shards(patient: Any) -> object:
    """Store every tensor a second time, in another file."""
    return (patient.folder / "other.safetensors").write_bytes((patient.folder / SHARD).read_bytes())


def all_of(*damages: Damage) -> Damage:
    """Do one damage after the other."""
    return lambda patient: [damage(patient) for damage in damages]


def config(**changes: Any) -> Damage:
    """Alter keys of config.json."""
    return lambda patient: patient.config(lambda config: config.update(changes))


def edit(name: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    """Alter another JSON file."""
    return lambda patient: patient.edit(name, change)


def group(**changes: Any) -> Damage:
    """Alter keys of the config group."""

    def change(config: dict[str, Any]) -> None:
        config["quantization_config"]["config_groups"]["group_0"].update(changes)

    return lambda patient: patient.config(change)


def second_group(**changes: Any) -> Damage:
    """Add a config group: the first one, altered."""

    def change(config: dict[str, Any]) -> None:
        groups = config["quantization_config"]["config_groups"]
        groups["group_1"] = json.loads(json.dumps(groups["group_0"])) | changes

    return lambda patient: patient.config(change)


def packed(tensors: Tensors) -> list[tuple[str, int, int]]:
    """Return the packed modules with their outputs and inputs."""
    modules = [name.removesuffix(".weight_packed") for name in tensors if name.endswith(".weight_packed")]
    shapes = [tensors[f"{module}.weight_packed"][1] for module in modules]
    return [(module, rows, 8 * columns) for module, (rows, columns) in zip(modules, shapes, strict=True)]


def stored(bits: int = 4, size: int = 128, *, zero_points: bool = False, g_idx: bool = False) -> Damage:
    """Store the packed layers by another scheme; a `size` of -1 is one group for each output."""

    def change(tensors: Tensors) -> None:
        for module, rows, inputs in packed(tensors):
            groups, words = 1 if size < 0 else inputs // size, inputs * bits // 32
            tensors[f"{module}.weight_packed"] = ("I32", [rows, words], bytes(rows * words * 4))
            tensors[f"{module}.weight_scale"] = ("BF16", [rows, groups], b"\x80<" * (rows * groups))
            if zero_points:
                shape = [rows * bits // 32, groups]
                tensors[f"{module}.weight_zero_point"] = ("I32", shape, bytes(shape[0] * groups * 4))
            if g_idx:
                tensors[f"{module}.weight_g_idx"] = ("I32", [inputs], bytes(inputs * 4))

    return lambda patient: patient.tensors(change)


def pack(*names: str, size: int = 128) -> Damage:
    """Store plain weights packed."""

    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith(names)]:
            _, (rows, inputs), _ = tensors.pop(name)
            tensors[f"{name}_packed"] = ("I32", [rows, inputs // 8], bytes(rows * inputs // 2))
            tensors[f"{name}_scale"] = ("BF16", [rows, inputs // size], bytes(rows * inputs // size * 2))
            tensors[f"{name}_shape"] = ("I64", [2], struct.pack("<2q", rows, inputs))

    return lambda patient: patient.tensors(change)


def unpack(part: str) -> Damage:
    """Store the packed layers with `part` in their names plain."""

    def change(tensors: Tensors) -> None:
        for module, rows, inputs in packed(tensors):
            if part in module:
                for suffix in ("packed", "scale", "shape"):
                    del tensors[f"{module}.weight_{suffix}"]
                tensors[f"{module}.weight"] = ("BF16", [rows, inputs], bytes(rows * inputs * 2))

    return lambda patient: patient.tensors(change)


def head(*, untied: bool = True, shape: tuple[int, int] = (1024, 256)) -> Damage:
    """Store an lm_head, and untie it from the embedding."""

    def change(raw: dict[str, Any]) -> None:
        raw["tie_word_embeddings"] = raw["text_config"]["tie_word_embeddings"] = not untied

    return all_of(
        lambda patient: patient.config(change),
        with_tensor("lm_head.weight", "BF16", [*shape], bytes(shape[0] * shape[1] * 2)),
    )


def beside(name: str, tensor: str) -> Damage:
    """Put a second file of tensors into the folder."""
    return lambda patient: write_shard(patient.folder / name, {tensor: ("F32", [4], bytes(16))})


def shards(patient: Any) -> None:
    """Split the shard into two, with an index."""
    halves: list[Tensors] = [{}, {}]
    patient.tensors(
        lambda tensors: [halves[number % 2].update({name: tensors[name]}) for number, name in enumerate(tensors)]
    )
    files = {f"model-0000{number}-of-00002.safetensors": half for number, half in enumerate(halves, 1)}
    for name, half in files.items():
        write_shard(patient.folder / name, half)
    names = {tensor: name for name, half in files.items() for tensor in half}
    index = {"metadata": {"total_size": 1, "total_parameters": 2}, "weight_map": names}
    content("model.safetensors.index.json", json.dumps(index).encode())(patient)


def text_only(patient: Any) -> None:
    """Make it a Gemma4ForCausalLM, as a text-only fine-tune is saved."""

    def change(tensors: Tensors) -> None:
        for name in list(tensors):
            tensor = tensors.pop(name)
            if name.startswith("model.language_model."):
                tensors[name.replace("model.language_model.", "model.")] = tensor

    patient.tensors(change)
    raw = json.loads((patient.folder / "config.json").read_bytes())
    flat = raw["text_config"] | {
        "architectures": ["Gemma4ForCausalLM"],
        "quantization_config": raw["quantization_config"],
    }
    content("config.json", json.dumps(flat).encode())(patient)
    without_file("processor_config.json")(patient)


def byte_order_mark(patient: Any) -> None:
    """Save config.json as some editors do."""
    content("config.json", b"\xef\xbb\xbf" + (patient.folder / "config.json").read_bytes())(patient)


def adapter(patient: Any) -> None:
    """Leave only an adapter in the folder."""
    for path in patient.folder.iterdir():
        path.unlink()
    content("adapter_config.json", b'{"peft_type": "LORA", "base_model_name_or_path": "google/gemma-4-E4B-it"}')(
        patient
    )
    beside("adapter_model.safetensors", ADAPTER)(patient)


def broken_links(patient: Any) -> None:
    """Leave links without their blobs, as a copied snapshot folder has them."""
    for path in patient.folder.iterdir():
        path.unlink()
        path.symlink_to(f"../../blobs/{hashlib.sha256(path.name.encode()).hexdigest()}")


def cache_folder(patient: Any) -> None:
    """Give the hub cache's folder of a repository instead of a snapshot."""
    snapshot = patient.folder.with_name("models--owner--gemma") / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    shutil.move(patient.folder, snapshot)
    patient.folder = snapshot.parents[1]


def gguf_file(patient: Any) -> None:
    """Give a file instead of a folder."""
    patient.folder = patient.folder.with_name("model.gguf")
    patient.folder.write_bytes(b"GGUF")


def unfinished(patient: Any) -> None:
    """Leave a download of huggingface-cli unfinished."""
    path = patient.folder / ".cache" / "huggingface" / "download" / "x=.incomplete"
    path.parent.mkdir(parents=True)
    (patient.folder / SHARD).rename(path)


def subfolder(name: str) -> Damage:
    """Put a copy of the weights into a folder below."""

    def damage(patient: Any) -> None:
        (patient.folder / "original").mkdir()
        shutil.copy(patient.folder / SHARD, patient.folder / "original" / name)

    return damage


def preprocessor(**changes: Any) -> Damage:
    """Put the image processor's settings, altered, into a file of its own, and no other processor's."""

    def damage(patient: Any) -> None:
        path = patient.folder / "processor_config.json"
        settings = json.loads(path.read_bytes())["image_processor"] | changes
        content("preprocessor_config.json", json.dumps(settings).encode())(patient)
        path.unlink()

    return damage


def processor(part: str, kind: str) -> Damage:
    """Name another class for a part of the processor."""
    return edit("processor_config.json", lambda each: each[part].update({f"{part}_type": kind}))


def template(text: str, *names: str) -> Damage:
    """Move the chat template, replaced by `text`, into tokenizer_config.json as a list by names."""
    named = [{"name": name, "template": text} for name in names]
    return all_of(
        without_file("chat_template.jinja"),
        edit("tokenizer_config.json", lambda each: each.update(chat_template=named)),
    )
