"""The tokenizer's files and the sampling defaults beside the weights."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from servekit import ENGINE_VERSION
from servekit.preflight.checkpoint.config_file import ABSENT, CONFIG, NO_OBJECT, ModelConfig, read_object
from servekit.preflight.checkpoint.schema.generation_types import generation_faults
from servekit.preflight.checkpoint.schema.tokenizer_types import tokenizer_config_faults, tokenizer_faults
from servekit.preflight.checkpoint.text_config import ARCHITECTURES
from servekit.preflight.findings import Finding, error, note, warning

TOKENIZER: Final = "tokenizer.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
GENERATION_CONFIG: Final = "generation_config.json"
_OPTIONAL: Final = ("special_tokens_map.json", "added_tokens.json")
_MODELS: Final = ("", "BPE", "Unigram", "WordLevel", "WordPiece")
_COPY: Final = "copy it from the original model"
_IMAGE_TOKENS: Final[Mapping[str, tuple[str, int]]] = {
    "boi_token": ("boi_token_id", 255_999),
    "eoi_token": ("eoi_token_id", 258_882),
}
"""Tokens around an image, and the key of config.json that must name the same id, with transformers' default."""


def check_tokenizer(folder: Path, config: ModelConfig, images: int) -> Iterator[Finding]:
    """Check the tokenizer, its special tokens and the sampling defaults against the model.

    Vocabulary and ids must fit, Gemma 4's processor needs the tokens of images, and the end of a turn ends an answer.
    """
    tokenizer, problem, line = read_object(folder / TOKENIZER)
    ids = _token_ids(tokenizer)
    if problem != ABSENT:
        yield from _check_vocabulary(tokenizer, problem, line, ids, config)
    elif not (folder / "tokenizer.model").exists():
        yield error("tokenizer-missing", f"{problem}, nor tokenizer.model", file=TOKENIZER, remedy=_COPY)
    for name in _OPTIONAL:
        _, problem, line = read_object(folder / name)
        if problem not in {"", ABSENT}:
            yield error("tokenizer-invalid", problem, file=name, line=line, remedy=f"{_COPY}, or delete it")
    settings, problem, line = read_object(folder / TOKENIZER_CONFIG)
    multimodal = config.architecture == ARCHITECTURES[0]
    if problem:
        report = error if multimodal or problem != ABSENT else warning
        why = f": vLLM {ENGINE_VERSION}'s Gemma 4 processor reads its image tokens" if multimodal else ""
        yield report("tokenizer-config", problem + why, file=TOKENIZER_CONFIG, line=line, remedy=_COPY)
    elif faults := tokenizer_config_faults(settings):
        for key, why in faults.items():
            yield error("tokenizer-config", why, file=TOKENIZER_CONFIG, key=key, remedy=_COPY)
    elif multimodal:
        yield from _check_image_tokens(config, settings, ids, images)
    yield from _check_special_tokens(config, settings, ids)
    yield from _check_generation(folder, config, settings, ids)


def _check_vocabulary(
    tokenizer: Mapping[str, Any], problem: str, line: int, ids: Mapping[str, int], config: ModelConfig
) -> Iterator[Finding]:
    model = tokenizer.get("model")
    vocabulary, kind = (model.get("vocab"), model.get("type")) if isinstance(model, dict) else (None, None)
    wrong = tokenizer_faults(tokenizer)
    if not isinstance(vocabulary, dict | list) or (kind or "") not in _MODELS:
        problem = problem or f"holds no model.vocab, or a model of another type than {', '.join(_MODELS[1:])}"
        yield error("tokenizer-invalid", problem, file=TOKENIZER, line=line, remedy=_COPY)
    elif wrong:
        key, why = next(iter(wrong.items()))
        message = f"{why}: the tokenizers library cannot read it"
        yield error("tokenizer-invalid", message, file=TOKENIZER, key=key, remedy=_COPY)
    elif config.text:
        largest = max(ids.values(), default=-1)
        if largest >= config.text.vocab_size:
            yield error(
                "tokenizer-vocabulary",
                f"has the token id {largest:,}, but the embedding has only {config.text.vocab_size:,} rows",
                file=TOKENIZER,
                remedy="use the tokenizer of this model",
            )


def _check_generation(
    folder: Path, config: ModelConfig, settings: Mapping[str, Any], ids: Mapping[str, int]
) -> Iterator[Finding]:
    """Check the model's sampling defaults, and that the end of a turn ends an answer."""
    generation, problem, line = read_object(folder / GENERATION_CONFIG)
    if problem:
        ends = problem.startswith(NO_OBJECT)
        yield (error if ends else note)(
            "generation-config",
            f"{problem}: vLLM {'ends at its start' if ends else 'uses its own sampling defaults'}",
            file=GENERATION_CONFIG,
            line=line,
            remedy=_COPY,
        )
    for key, why in generation_faults(generation).items():
        message = f"{why}: vLLM answers 400 to every request that leaves {key} out"
        yield error("generation-config", message, file=GENERATION_CONFIG, key=key, remedy=_COPY)
    turn = special_token(settings, "eot_token")
    stops = generation.get("eos_token_id", config.raw.get("eos_token_id"))
    known = [*(stops if isinstance(stops, list) else [stops]), ids.get(special_token(settings, "eos_token"))]
    if turn in ids and ids[turn] not in known:
        yield warning(
            "generation-config",
            f"does not stop at {turn!r} (id {ids[turn]}), which ends a turn: answers go on until max_tokens",
            file=CONFIG if problem else GENERATION_CONFIG,
            key="eos_token_id",
            got=repr(stops),
            remedy=f"{_COPY}, or add {ids[turn]}",
        )


def _check_special_tokens(
    config: ModelConfig, settings: Mapping[str, Any], ids: Mapping[str, int]
) -> Iterator[Finding]:
    """Report special tokens that transformers would add behind the vocabulary, where the embedding has no row."""
    extra = settings.get("extra_special_tokens")
    names = sorted({*settings, *(extra if isinstance(extra, dict) else ())})
    tokens = {name: special_token(settings, name) for name in names if name.endswith("_token")}
    unknown = [name for name, token in tokens.items() if token and token not in ids]
    new = {tokens[name] for name in unknown}
    rows = config.text.vocab_size if config.text else 0
    if ids and unknown and max(ids.values()) + len(new) >= rows > 0:
        message = f"is {tokens[unknown[0]]!r}, which {TOKENIZER} does not know: it would get an id beyond "
        yield error(
            "token-ids",
            f"{message}the {rows:,} rows of the embedding",
            file=TOKENIZER_CONFIG,
            key=unknown[0],
            remedy="use the tokenizer of this model",
        )


def _check_image_tokens(
    config: ModelConfig, settings: Mapping[str, Any], ids: Mapping[str, int], images: int
) -> Iterator[Finding]:
    needed = ["image_token", *_IMAGE_TOKENS, *(["pad_token"] if images else [])]
    absent = [name for name in needed if not special_token(settings, name)]
    if absent:
        yield error(
            "tokenizer-config",
            f"names no {', '.join(absent)}, which vLLM {ENGINE_VERSION}'s Gemma 4 processor needs",
            file=TOKENIZER_CONFIG,
            remedy=_COPY,
        )
    if not images or not ids:
        return
    for name, (key, default) in _IMAGE_TOKENS.items():
        token, value = special_token(settings, name), config.raw.get(key, default)
        if token in ids and value != ids[token]:
            yield error(
                "token-ids",
                f"must be the id of {token!r}, {ids[token]} in {TOKENIZER}: vLLM puts config.json's around an image",
                file=CONFIG,
                key=key,
                got=repr(value),
                remedy=f"write {ids[token]}",
            )


def special_token(settings: Mapping[str, Any], name: str) -> str:
    """Return the text of a special token of tokenizer_config.json; empty if it names none."""
    extra = settings.get("extra_special_tokens")
    token = (extra.get(name) if isinstance(extra, dict) else None) or settings.get(name)
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _token_ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    pairs: list[tuple[Any, Any]] = list(vocabulary.items()) if isinstance(vocabulary, dict) else []
    if isinstance(vocabulary, list):  # of Unigram: each token with its score
        pairs = [(entry[0], number) for number, entry in enumerate(vocabulary) if isinstance(entry, list) and entry]
    tokens = [each for each in added if isinstance(each, dict)] if isinstance(added, list) else []
    pairs += [(each.get("content"), each.get("id")) for each in tokens]
    return {token: number for token, number in pairs if isinstance(token, str) and type(number) is int}
