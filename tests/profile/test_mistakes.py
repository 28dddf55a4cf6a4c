"""The mistakes of a profile, each with its error line."""

from collections.abc import Callable
from pathlib import Path

import pytest

Write = Callable[[str], Path]
Refused = Callable[..., list[str]]

GPU_LIMITS = "Gemma 4 mixes two head sizes, and vLLM chooses the one backend that is right for both"
ONE_GPU = "this endpoint is one engine on one GPU"


BROKEN_LINES = [
    # YAML structure
    ("max-num-seqs: 1024", "8: max-num-seqs: is given twice, first in line 3; keep one of them"),
    ("seed:", "8: seed: has no value; give it one, or leave the key out for vLLM's default"),
    ("seed: ~", "8: seed: has no value (got ~); give it one, or leave the key out for vLLM's default"),
    ("seed: null", "8: seed: has no value (got null); give it one, or leave the key out for vLLM's default"),
    ("block-size: 0", "8: block-size: must be at least 1, and a size that exists (got 0); correct it, or take it out"),
    (
        "num-gpu-blocks-override: -1",
        "8: num-gpu-blocks-override: must be at least 1, and a size that exists (got -1); correct it, or take it out",
    ),
    (
        "cpu-offload-gb: 1.0e+308",
        "8: cpu-offload-gb: must be at least 0, and a size that exists (got 1e+308); correct it, or take it out",
    ),
    ("seed: &a 1", "8: seed: anchors are not allowed (got &a); take it out"),
    ("seed: *a", "8: seed: aliases are not allowed (got *a); write the value out"),
    ("seed: !!int 1", "8: seed: tags are not allowed (got tag:yaml.org,2002:int); write the value without it"),
    ("<<: {a: 1}", "8: <<: merge keys are not allowed; write the keys out"),
    ("on: 1", "8: on: YAML 1.1 reads on as true; put the key in quotes"),
    ("? \n: 1", "8: has no value; begin the line with a key"),
    ("? [a]\n: 1", "8: a key must be a word; write `key: value`"),
    ("tokenizer: =", '8: tokenizer: YAML gives this sign a special meaning (got =); write "=" in quotes'),
    (
        "hf-overrides: {a: {b: }, a: 1}",
        "8: hf-overrides.a.b: has no value; give it one, or leave the key out for vLLM's default",
        "8: hf-overrides.a: is given twice, first in line 8; keep one of them",
    ),
    ('tokenizer: "\\0"', "8: tokenizer: contains a character that no program argument can hold; take it out"),
    ('tokenizer: "\\ud800"', "8: tokenizer: contains a character that no program argument can hold; take it out"),
    ("hf-overrides: " + "[" * 40, "8: is nested more than 20 levels deep; check the brackets"),
    ("---\nseed: 1", "8: a second document begins here; keep one document in the file"),
    # syntax
    (
        "\tseed: 1",
        "8: not YAML: found character '\\t' that cannot start any token; indent with spaces, not with a tab",
    ),
    ("seed: @x", "8: not YAML: found character '@' that cannot start any token; put the text in quotes"),
    (
        "seed: [1",
        (
            "9: not YAML: expected ',' or ']', but got '<stream end>' while parsing a flow sequence, "
            "which begins in line 8; close the bracket, and put a comma between the values"
        ),
    ),
    (
        "seed: 'x",
        (
            "9: not YAML: found unexpected end of stream while scanning a quoted scalar, which begins in line 8; "
            "close the quotes"
        ),
    ),
    (
        "a: b: c",
        (
            "8: not YAML: mapping values are not allowed here; "
            "indent the line as its neighbours, and put text with `: ` in quotes"
        ),
    ),
    (
        "seed 1",
        (
            "9: not YAML: could not find expected ':' while scanning a simple key, which begins in line 8; "
            "write `key: value`"
        ),
    ),
    ('seed: "\\q"', "8: not YAML: found unknown escape character 'q'; put the text in single quotes"),
    ('seed: "\\UFFFFFFFF"', "8: contains a character that YAML does not allow; take it out"),
    ("seed: \x07", "8: contains a character that YAML does not allow (got U+0007); take it out"),
    ("seed: \x00", "8: contains a NUL byte; save the file as UTF-8 text"),
    # values that YAML may read as another type
    (
        "enforce-eager: on",
        '8: enforce-eager: YAML 1.1 reads on as true (got on); write true, or "on" in quotes for the text',
    ),
    (
        "enforce-eager: No",
        '8: enforce-eager: YAML 1.1 reads No as false (got No); write false, or "No" in quotes for the text',
    ),
    (
        "seed: 0777",
        (
            "8: seed: YAML 1.1 reads 0777 as 511 (got 0777); "
            'write 511 if you mean that, 777 if not, or "0777" for the text'
        ),
    ),
    (
        "seed: 0x10",
        '8: seed: YAML 1.1 reads 0x10 as 16 (got 0x10); write 16 if you mean that, 10 if not, or "0x10" for the text',
    ),
    ("seed: 0x_", '8: seed: could be a number or a text (got 0x_); write "0x_" in quotes for the text'),
    (
        "seed: 1_000",
        '8: seed: not every YAML reader takes _ inside a number (got 1_000); write 1000, or "1_000" for the text',
    ),
    (
        "cpu-offload-gb: 1_0.5",
        (
            "8: cpu-offload-gb: not every YAML reader takes _ inside a number (got 1_0.5); "
            'write 10.5, or "1_0.5" for the text'
        ),
    ),
    (
        "seed: 1:30",
        (
            "8: seed: YAML 1.1 reads this as a number of base 60 (got 1:30); "
            'write "1:30" in quotes for the text, or the number'
        ),
    ),
    (
        "cpu-offload-gb: 1:30.5",
        (
            "8: cpu-offload-gb: YAML 1.1 reads this as a number of base 60 (got 1:30.5); "
            'write "1:30.5" in quotes for the text, or the number'
        ),
    ),
    (
        "cpu-offload-gb: 1e-5",
        (
            "8: cpu-offload-gb: YAML 1.1 reads 1e-5 as text, not as a number (got 1e-5); "
            'write 1.0e-5, or "1e-5" for the text'
        ),
    ),
    (
        "code-revision: 12e4567",
        '8: code-revision: could be a number or a text (got 12e4567); write "12e4567" in quotes for the text',
    ),
    ("cpu-offload-gb: .inf", "8: cpu-offload-gb: is not a finite number (got .inf); give a number"),
    ("cpu-offload-gb: 1.0e+999", "8: cpu-offload-gb: is not a finite number (got 1.0e+999); give a number"),
    ("seed: 1234567890123456789", "8: seed: is a number of 19 digits (got 1234567890123456789); check it"),
    (f"cpu-offload-gb: 0.{'1' * 39}", f"8: cpu-offload-gb: is a number of 41 digits (got 0.{'1' * 39}); check it"),
    (
        "code-revision: 2024-01-01",
        '8: code-revision: YAML reads this as a date (got 2024-01-01); write "2024-01-01" in quotes for the text',
    ),
    (
        "mm-processor-kwargs: {a: [1, {b: no}]}",
        (
            "8: mm-processor-kwargs.a[1].b: YAML 1.1 reads no as false (got no); "
            'write false, or "no" in quotes for the text'
        ),
    ),
    # names
    (
        "max_num_seqs: 5",
        "8: max_num_seqs: is given twice, as another spelling of max-num-seqs in line 3; keep one of them",
    ),
    (
        "gpu-memory-utilisation: 0.9",
        "8: gpu-memory-utilisation: is not a vLLM 0.20.2 argument; did you mean gpu-memory-utilization?",
    ),
    ("gpu-memory: 0.9", "8: gpu-memory: is not a vLLM 0.20.2 argument; did you mean gpu-memory-utilization?"),
    ("tp: 2", "8: tp: is not a vLLM 0.20.2 argument; did you mean tensor-parallel-size?"),
    ("--seed: 3", "8: --seed: is not a vLLM 0.20.2 argument; did you mean seed?"),
    ("quite-another: 3", "8: quite-another: is not a vLLM 0.20.2 argument; take it out"),
    ("seed.a: 3", "8: seed.a: is not a vLLM 0.20.2 argument; nest the keys under `seed:`"),
    ("zzzz.a: 3", "8: zzzz.a: is not a vLLM 0.20.2 argument; nest the keys"),
    (
        "no-enable-prefix-caching: false",
        (
            "8: no-enable-prefix-caching: must be true, or not be there (got false); "
            "write `enable-prefix-caching: true` or `enable-prefix-caching: false`"
        ),
    ),
    ("no-seed: true", "8: no-seed: is not a vLLM 0.20.2 argument; did you mean seed?"),
    # types, choices and limits
    ("enforce-eager: 'true'", '8: enforce-eager: must be true or false (got "true"); write true without quotes'),
    ("enforce-eager: 1", "8: enforce-eager: must be true or false (got 1)"),
    ("seed: '7'", '8: seed: must be a whole number (got "7"); write the number without quotes'),
    ("seed: 1.5", "8: seed: must be a whole number (got 1.5)"),
    ("seed: true", "8: seed: must be a whole number (got true)"),
    ("tokenizer: 5", '8: tokenizer: must be text (got 5); write "5" in quotes'),
    ("tokenizer: [a]", '8: tokenizer: must be text (got ["a"])'),
    ("gpu-memory-utilization: 1.5", "8: gpu-memory-utilization: must be at most 1.0 (got 1.5)"),
    ("gpu-memory-utilization: 0", "8: gpu-memory-utilization: must be greater than 0.0 (got 0)"),
    ("gpu-memory-utilization: 90%", '8: gpu-memory-utilization: must be a number (got "90%")'),
    ("max-model-len: 0", "8: max-model-len: must be greater than 0 (got 0)"),
    ("max-model-len: 20x", '8: max-model-len: must be a whole number, also as 20k, or auto (got "20x")'),
    ("max-model-len: 2.5K", '8: max-model-len: must be a whole number, also as 20k, or auto (got "2.5K")'),
    ("stream-interval: 0", "8: stream-interval: must be at least 1 (got 0)"),
    ("video-pruning-rate: 1.0", "8: video-pruning-rate: must be less than 1.0 (got 1.0)"),
    (
        "dtype: bfloat61",
        (
            "8: dtype: must be one of auto, bfloat16, float, float16, float32, half "
            '(got "bfloat61"); did you mean bfloat16?'
        ),
    ),
    ("scheduling-policy: xyz", '8: scheduling-policy: must be one of fcfs, priority (got "xyz")'),
    ("speculative-config: abc", '8: speculative-config: must be a mapping (got "abc")'),
    ("speculative-config: '{broken'", '8: speculative-config: must be a mapping (got "{broken")'),
    ("speculative-config: '{\"a\": NaN}'", '8: speculative-config: must be a mapping (got "{\\"a\\": NaN}")'),
    (
        'allowed-origins: ["https://a.example"]',
        (
            "8: allowed-origins: cannot be set in a profile: servekit sets it;"
            " set SERVEKIT_CORS_ORIGINS or --cors-origins instead"
        ),
    ),
    ("reasoning-config: [1]", "8: reasoning-config: must be a mapping (got [1])"),
    (
        "mm-processor-kwargs: num_crops=4, size:336",
        (
            '8: mm-processor-kwargs: must be a mapping (got "num_crops=4, size:336"); '
            "write `{num_crops: 4, size: 336}`, with a space after each colon"
        ),
    ),
    ("hf-overrides: 5", "8: hf-overrides: must be a mapping or text (got 5)"),
    (
        "cudagraph-capture-sizes:\n  - 1\n  - two",
        '10: cudagraph-capture-sizes[1]: must be a whole number (got "two")',
    ),
    ("cudagraph-capture-sizes: []", "8: cudagraph-capture-sizes: must be a list with something in it (got [])"),
    ("cudagraph-capture-sizes: x", '8: cudagraph-capture-sizes: must be a list, each item a whole number (got "x")'),
    (
        "ignore-patterns: [-x]",
        '8: ignore-patterns: has an item that vLLM would take for another argument (got ["-x"]); start no item with -',
    ),
    ("chat-template: None", '8: chat-template: vLLM reads this as no value (got "None"); leave the key out'),
    ("chat-template: ''", '8: chat-template: vLLM reads this as no value (got ""); leave the key out'),
    (
        "compilation-config:\n  modee: 3",
        "9: compilation-config.modee: is not a key of compilation-config; did you mean mode?",
    ),
    (
        "compilation-config: '{\"zzz\": 3}'",
        "8: compilation-config.zzz: is not a key of compilation-config; take it out",
    ),
    ("enable-turbo-mode: true", "8: enable-turbo-mode: is not a vLLM 0.20.2 argument; take it out"),
    # keys that a profile must not have
    (
        "no-enable-log-requests: true",
        (
            "8: no-enable-log-requests: cannot be set in a profile: would put what users write and read into the log; "
            "take it out"
        ),
    ),
    (
        "no_enable_log_outputs: false",
        (
            "8: no_enable_log_outputs: cannot be set in a profile: would put what users write and read into the log; "
            "take it out"
        ),
    ),
    ("port: 8000", "8: port: cannot be set in a profile: servekit sets the port; set SERVEKIT_PORT or --port instead"),
    (
        "api_key: x",
        (
            "8: api_key: cannot be set in a profile: vLLM logs its keys and leaves routes open; the guard keeps them; "
            "set SERVEKIT_API_KEYS_FILE or --api-keys-file instead"
        ),
    ),
    (
        "attention-backend: FLASH_ATTN",
        f"8: attention-backend: cannot be set in a profile: {GPU_LIMITS}; take it out",
    ),
    (
        "attention-config:\n  backend: FLASH_ATTN",
        f'9: attention-config.backend: {GPU_LIMITS} (got "FLASH_ATTN"); take it out',
    ),
    (
        "structured-outputs-config:\n  backend: auto",
        (
            "9: structured-outputs-config.backend: servekit bounds every grammar for one backend, guidance "
            '(got "auto"); write `backend: guidance`, or take it out'
        ),
    ),
    (
        "structured-outputs-config:\n  disable_any_whitespace: true\n  backend: xgrammar",
        (
            "10: structured-outputs-config.backend: servekit bounds every grammar for one backend, guidance "
            '(got "xgrammar"); write `backend: guidance`, or take it out'
        ),
    ),
    ("tensor-parallel-size: 2", f"8: tensor-parallel-size: {ONE_GPU} (got 2); write 1, or take it out"),
    (
        "distributed-executor-backend: ray",
        f'8: distributed-executor-backend: {ONE_GPU} (got "ray"); write "mp" or "uni", or take it out',
    ),
    # rules between keys
    (
        "max-num-batched-tokens: 4096\nmax-model-len: 20000\nenable-chunked-prefill: false",
        (
            "8: max-num-batched-tokens: must be at least max-model-len (20000) while enable-chunked-prefill is false "
            "(got 4096); raise it to 20000, or write `enable-chunked-prefill: true`"
        ),
    ),
    (
        "max-num-batched-tokens: 512",
        "8: max-num-batched-tokens: must be at least max-num-seqs (1024) (got 512); raise it to 1024",
    ),
    (
        "max-num-partial-prefills: 2\nenable-chunked-prefill: false",
        "8: max-num-partial-prefills: needs chunked prefill (got 2); write 1, or `enable-chunked-prefill: true`",
    ),
    (
        "max-long-partial-prefills: 2",
        "8: max-long-partial-prefills: must be at most max-num-partial-prefills (1) (got 2); write 1",
    ),
    (
        "max-model-len: 100\nlong-prefill-token-threshold: 200\nmax-num-partial-prefills: 2",
        "9: long-prefill-token-threshold: must be at most max-model-len (100) (got 200); lower it to 100 or less",
    ),
    (
        "tool-call-parser: gemma",
        '8: tool-call-parser: is not a tool-call-parser of vLLM 0.20.2 (got "gemma"); did you mean gemma4?',
    ),
    (
        "reasoning-parser: gemma_4",
        '8: reasoning-parser: is not a reasoning-parser of vLLM 0.20.2 (got "gemma_4"); did you mean gemma4?',
    ),
    (
        "structured-outputs-config:\n  reasoning_parser: qwen_3",
        (
            "9: structured-outputs-config.reasoning_parser: is not a reasoning-parser of vLLM 0.20.2 "
            '(got "qwen_3"); did you mean qwen3?'
        ),
    ),
    (
        "load-format: safetensor",
        '8: load-format: is not a load-format of vLLM 0.20.2 (got "safetensor"); did you mean safetensors?',
    ),
    (
        "speculative-config: {model: google/gemma-4-E4B-it-assistant, num_speculative_tokens: 4}",
        (
            "8: speculative-config.model: vLLM 0.20.2 runs no draft model beside images "
            '(got "google/gemma-4-E4B-it-assistant"); write `method: ngram` without a model, or for such a model '
            "`method:` eagle or eagle3 or dflash or medusa"
        ),
    ),
    (
        "speculative-config: {method: mtp, num_speculative_tokens: 1}",
        (
            '8: speculative-config.method: is not a method that vLLM 0.20.2 has for Gemma 4 (got "mtp"); '
            "write one of ngram, ngram_gpu, suffix, eagle, eagle3, dflash, medusa"
        ),
    ),
    (
        "speculative-config: {method: eagle3, num_speculative_tokens: 0}",
        '8: speculative-config.method: needs a model (got "eagle3"); write `model:`, or `method: ngram`',
        (
            "8: speculative-config.num_speculative_tokens: must be a whole number of at least 1 (got 0); "
            "write how many tokens"
        ),
    ),
    (
        "speculative-config: {model: a/b-eagle3, parallel_drafting: true, num_speculative_tokens: 2}",
        (
            "8: speculative-config.parallel_drafting: vLLM 0.20.2 has no parallel drafting beside images (got true); "
            "take it out"
        ),
    ),
    (
        "speculative-config: {method: ngram, num_speculative_token: 2}",
        (
            "8: speculative-config.num_speculative_token: is not a key of speculative-config; "
            "did you mean num_speculative_tokens?"
        ),
    ),
    (
        "enable-auto-tool-choice: true",
        "8: enable-auto-tool-choice: needs tool-call-parser; add `tool-call-parser: gemma4`, or take it out",
    ),
    (
        "kv-cache-dtype-skip-layers: ['1']",
        (
            "8: kv-cache-dtype-skip-layers: would keep a part of the cache out of kv-cache-dtype; "
            "take it out, or allow it with --deviate kv-cache-dtype"
        ),
    ),
]


@pytest.mark.parametrize("broken", BROKEN_LINES, ids=lambda row: ascii(row[0])[:40])
def test_refused(refused: Refused, write: Write, smallest: str, broken: tuple[str, ...]) -> None:
    """Each mistake gives one line with its place, the value and the remedy."""
    line, *messages = broken
    assert refused(write(smallest + line + "\n")) == [in_profile(message) for message in messages]


@pytest.mark.parametrize(("sign", "word"), [("&a", "anchors"), ("!!map", "tags"), ("!python/object:foo", "tags")])
def test_a_root_with_an_anchor_or_a_tag(refused: Refused, write: Write, smallest: str, sign: str, word: str) -> None:
    """The rules of the graph hold for the whole document too."""
    (message,) = refused(write(f"--- {sign}\n{smallest}"))
    assert f"{word} are not allowed" in message


def test_contract_missing(refused: Refused, write: Write) -> None:
    """The error lists every missing key of the contract."""
    assert refused(write("seed: 1\n")) == [
        (
            "profile.yaml: error: kv-cache-dtype: is missing; "
            "write `kv-cache-dtype: fp8_e4m3`, or allow it with --deviate kv-cache-dtype"
        ),
        (
            "profile.yaml: error: quantization: is missing; "
            "write `quantization: compressed-tensors`, or allow it with --deviate quantization"
        ),
        (
            "profile.yaml: error: limit-mm-per-prompt: is missing; "
            "write `limit-mm-per-prompt: {image: 3, audio: 0, video: 0}`, "
            "or allow it with --deviate limit-mm-per-prompt"
        ),
        (
            "profile.yaml: error: max-num-seqs: is missing; "
            "write `max-num-seqs: 1024`, or allow it with --deviate max-num-seqs"
        ),
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "fp8_e4m3",
            "auto",
            (
                '1: kv-cache-dtype: the contract of this endpoint is fp8_e4m3 (got "auto"); '
                "write `kv-cache-dtype: fp8_e4m3`, or allow it with --deviate kv-cache-dtype"
            ),
        ),
        (
            "1024",
            "256",
            (
                "3: max-num-seqs: the contract of this endpoint is 1024 (got 256); "
                "write `max-num-seqs: 1024`, or allow it with --deviate max-num-seqs"
            ),
        ),
        (
            "image: 3",
            "image: 4",
            (
                "5: limit-mm-per-prompt.image: the contract of this endpoint is 3 (got 4); "
                "write `image: 3`, or allow it with --deviate limit-mm-per-prompt"
            ),
        ),
        (
            "video: 0",
            "video: 1",
            (
                "7: limit-mm-per-prompt.video: the contract of this endpoint is 0 (got 1); "
                "write `video: 0`, or allow it with --deviate limit-mm-per-prompt"
            ),
        ),
        (
            "  audio: 0\n",
            "",
            (
                "4: limit-mm-per-prompt.audio: is missing, and vLLM allows 999 items of a kind that is left out; "
                "write `audio: 0` under limit-mm-per-prompt, or allow it with --deviate limit-mm-per-prompt"
            ),
        ),
        ("image: 3", "image: -3", "5: limit-mm-per-prompt.image: must be at least 0 (got -3)"),
        ("image: 3", "image: '3'", '5: limit-mm-per-prompt.image: must be a whole number (got "3")'),
        (
            "image: 3",
            "image: {count: 4, width: 64}",
            (
                "5: limit-mm-per-prompt.image: the contract of this endpoint is 3 (got 4); "
                "write `image: 3`, or allow it with --deviate limit-mm-per-prompt"
            ),
        ),
        (
            "image: 3",
            "image: {width: 64}",  # vLLM allows 999 then
            (
                "5: limit-mm-per-prompt.image: the contract of this endpoint is 3 (got 999); "
                "write `image: 3`, or allow it with --deviate limit-mm-per-prompt"
            ),
        ),
        ("image: 3", "image: {count: -1}", "5: limit-mm-per-prompt.image.count: must be at least 0 (got -1)"),
        ("image: 3", "image: {width: 0}", "5: limit-mm-per-prompt.image.width: must be greater than 0 (got 0)"),
        (
            "image: 3",
            "image: {breadth: 3}",
            '5: limit-mm-per-prompt.image.breadth: must be count, width or height (got "breadth")',
        ),
        ("audio: 0", "audio: {width: 1}", '6: limit-mm-per-prompt.audio.width: must be count or length (got "width")'),
        (
            "\n  image: 3\n  audio: 0\n  video: 0\n",
            " image=3,audio=0\n",
            (
                '4: limit-mm-per-prompt: must be a mapping (got "image=3,audio=0"); '
                "write `{image: 3, audio: 0}`, with a space after each colon"
            ),
        ),
        (
            "\n  image: 3\n  audio: 0\n  video: 0\n",
            " {image: 3, audio: 0, video:0}\n",
            "4: limit-mm-per-prompt.video:0: has no value; write `video: 0`, with a space after the colon",
        ),
        ("image: 3", "pictures: 3", '5: limit-mm-per-prompt.pictures: must be image, audio or video (got "pictures")'),
        ("fp8_e4m3", "fp8_e4m4", None),
        ("compressed-tensors", "''", None),
    ],
)
def test_contract_changed(
    refused: Refused, write: Write, smallest: str, old: str, new: str, message: str | None
) -> None:
    """A changed value of the contract is one mistake at its line."""
    (line,) = refused(write(smallest.replace(old, new)))
    if message:
        assert line == in_profile(message)


@pytest.mark.parametrize(
    ("text", "heads"),
    [
        ("seed: on\ndtype: @x\n", ["8: seed", "9: not YAML"]),
        ("on: @x\n", ["8: not YAML", "8: on"]),
        ("seed: 1\nseed: @x\n", ["9: not YAML", "9: seed"]),
        ("hf-overrides:\n  a: no\n  b: @x\n", ["9: hf-overrides.a", "10: not YAML"]),
        ("hf-overrides: {a: no, b: [1, 0777", ["8: not YAML", "8: hf-overrides.a", "8: hf-overrides.b[1]"]),
    ],
)
def test_a_syntax_error_hides_no_mistake(
    refused: Refused, write: Write, smallest: str, text: str, heads: list[str]
) -> None:
    """What stands before a syntax error is checked, up to the key whose value is broken off."""
    lines = refused(write(smallest + text))
    assert [
        line.removeprefix("profile.yaml:").replace(" error:", "").rsplit(": ", 1)[0][: len(head)]
        for line, head in zip(lines, heads, strict=True)
    ] == heads


@pytest.mark.parametrize("depth", [19, 20, 21, 60])
@pytest.mark.parametrize("word", ["on", "~", "0777", "<<"])
def test_a_trap_word_as_a_deep_key(refused: Refused, write: Write, smallest: str, word: str, depth: int) -> None:
    """A word that is no plain key is a mistake with its path at any depth, or the depth is the mistake."""
    nested = "{a: " * (depth - 1) + f"{{{word}: 1}}" + "}" * (depth - 1)
    (line,) = refused(write(f"{smallest}hf-overrides: {nested}\n"))
    assert (f".{word}: " in line) if depth <= 20 else ("nested more than 20 levels deep" in line)


def test_all_mistakes_at_once_in_the_order_of_the_file(refused: Refused, write: Write) -> None:
    """One run reports every mistake, of every kind, by line; missing keys come last."""
    path = write(
        "max-num-seqs: 256\nport: 80\nseed:\nenforce-eager: on\nsed: 1\ndtype: x\n"
        "kv-cache-dtype: !!str fp8_e4m3\nquantization: compressed-tensors\nquantization: awq\n"
    )
    heads = [line.split(": ")[:3] for line in refused(path)]
    assert heads == [
        ["profile.yaml:1", "error", "max-num-seqs"],
        ["profile.yaml:2", "error", "port"],
        ["profile.yaml:3", "error", "seed"],
        ["profile.yaml:4", "error", "enforce-eager"],
        ["profile.yaml:5", "error", "sed"],
        ["profile.yaml:6", "error", "dtype"],
        ["profile.yaml:7", "error", "kv-cache-dtype"],
        ["profile.yaml:9", "error", "quantization"],
        ["profile.yaml", "error", "limit-mm-per-prompt"],
    ]


def in_profile(message: str) -> str:
    """Return the complete error line for `LINE: MESSAGE`."""
    line, _, rest = message.partition(": ")
    return f"profile.yaml:{line}: error: {rest}"
