"""The contents of messages: too many of them, images, media that are turned off, templates, and malformed bodies."""

import base64
import struct
import zlib
from functools import partial
from typing import Any

from tests.engine.killers.case import (
    CHAT,
    MESSAGES,
    RESPONSES,
    RIGHT,
    UNHARMED,
    Case,
    Group,
    Target,
    chat,
    fields,
    plain,
)

TEMPLATE = ("CVE-2026-115911", "PYSEC-2026-4349")
ENDLESS = "{% for a in range(99999999) %}{% for b in range(99999999) %}{% endfor %}{% endfor %}"


def png(side: int = 64, grey: int = 0) -> str:
    """Return a square PNG of one shade, in base64."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress((b"\0" + bytes([grey]) * side) * side)
    header = struct.pack(">II5B", side, side, 8, 0, 0, 0, 0)
    whole = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return base64.b64encode(whole).decode()


def picture(url: str | None = None, **members: Any) -> dict[str, Any]:
    """Return an image as a content part of a message."""
    return {"type": "image_url", "image_url": {"url": url or f"data:image/png;base64,{png()}"}, **members}


def parts(name: str, /, *content: Any, **right: Any) -> Case:
    """Return the case of a chat message with these content parts."""
    return Case(name, lambda target: chat(list(content), model=target.model), CHAT, **right)


def messages(name: str, made: list[Any], **right: Any) -> Case:
    """Return the case of a chat with these messages."""
    return plain(name, added={"messages": made}, **right)


TEXT = {"type": "text", "text": "x"}

MANY = Group(
    "more messages than anybody writes",
    (
        fields(
            "100,000 messages",
            made=lambda _target: {"messages": [{"role": "user", "content": "x"}] * 100_000},
            says=("values",),
        ),
        fields(
            "200,000 parts",
            made=lambda _target: {"messages": [{"role": "user", "content": [TEXT] * 200_000}]},
            says=("values",),
        ),
        fields(
            "100,000 messages for messages",
            MESSAGES,
            made=lambda _target: {"messages": [{"role": "user", "content": "x"}] * 100_000},
        ),
        fields(
            "100,000 items for responses",
            RESPONSES,
            made=lambda _target: {"input": [{"role": "user", "content": "x"}] * 100_000},
        ),
        fields(
            "100,000 tools", made=lambda _target: {"tools": [{"type": "function", "function": {"name": "f"}}] * 100_000}
        ),
        fields(
            "100,000 tool calls",
            made=lambda _target: {
                "messages": [
                    {"role": "user", "content": "x"},
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
                        * 100_000,
                    },
                ]
            },
        ),
        fields(
            "20 MB of text", made=lambda _target: {"messages": [{"role": "user", "content": "abcdefghi " * 2_000_000}]}
        ),
        messages("no messages", [], says=("messages",)),
        plain("no tools", added={"tools": []}, statuses=UNHARMED),
    ),
)

TEMPLATES = Group(
    "templates and keyword arguments",
    (
        plain("chat_template", added={"chat_template": "{{ messages }}"}, says=("chat_template",)),
        plain("chat_template for responses", RESPONSES, added={"chat_template": ENDLESS}, statuses=UNHARMED),
        *(
            plain(
                f"a template among chat_template_kwargs for {path}",
                path,
                added={"chat_template_kwargs": {"chat_template": ENDLESS}},
                statuses=UNHARMED if path == RESPONSES else frozenset({400}),
                closes=TEMPLATE,
            )
            for path in (CHAT, RESPONSES, MESSAGES)
        ),
        plain(
            "a template among reasoning for responses",
            RESPONSES,
            added={"chat_template_kwargs": {"chat_template": "x"}, "reasoning": {"effort": "low"}},
            statuses=UNHARMED,
        ),
        plain("enable_thinking", added={"chat_template_kwargs": {"enable_thinking": True}}, statuses=RIGHT),
        plain("a tokenizer's argument", added={"chat_template_kwargs": {"tokenize": True, "return_dict": True}}),
        fields("100,000 documents", made=lambda _target: {"documents": [{"title": "x", "text": "y"}] * 100_000}),
        plain("documents", added={"documents": [{"title": "x", "text": "y"}]}, statuses=UNHARMED),
        plain(
            "mm_processor_kwargs",
            added={"mm_processor_kwargs": {"max_soft_tokens": 560}},
            says=("mm_processor_kwargs",),
            closes=("CVE-2026-114053",),
        ),
        Case(
            "do_resize off beside an image",
            lambda target: chat([picture()], model=target.model, mm_processor_kwargs={"do_resize": False}),
            says=("mm_processor_kwargs",),
            closes=("CVE-2026-116179",),
        ),
        plain(
            "mm_processor_kwargs for responses",
            RESPONSES,
            added={"mm_processor_kwargs": {"do_resize": False}},
            says=("mm_processor_kwargs",),
        ),
        plain("media_io_kwargs", added={"media_io_kwargs": {"image": {"x": 1}}}, says=("media_io_kwargs",)),
        *(
            plain(
                f"kv_transfer_params for {path}",
                path,
                added={
                    "kv_transfer_params": {
                        "do_remote_decode": True,
                        "do_remote_prefill": True,
                        "remote_engine_id": "x",
                        "remote_block_ids": [[1]],
                        "remote_host": "127.0.0.1",
                        "remote_port": 1,
                    }
                },
                statuses=UNHARMED,
                closes=("CVE-2026-105756", "CVE-2026-116180"),
            )
            for path in (CHAT, RESPONSES, MESSAGES)
        ),
        plain(
            "a template's text in a message",
            added={"messages": [{"role": "user", "content": "{{ 7*7 }}{% include x %}"}]},
            statuses=RIGHT,
        ),
        plain("a role of its own", added={"messages": [{"role": "{{ 7*7 }}", "content": "x"}]}, statuses=UNHARMED),
    ),
)

REFUSED_LATE: dict[str, dict[str, Any]] = {
    "greedy with two choices": {"n": 2, "temperature": 0},
    "min_tokens": {"min_tokens": 9},
    "a schema of no type": {"structured_outputs": {"json": {"type": "nosuch"}}},
    "logprobs of the prompt": {"n": 256, "prompt_logprobs": 20},
}
"""Requests that vLLM or admission refuses after the image has been processed and registered in the cache."""


def with_image(shade: int, added: dict[str, Any], _target: Target) -> dict[str, Any]:
    """Return the fields of a message with an image of this shade, and additional fields."""
    image = picture(f"data:image/png;base64,{png(48, shade)}")
    return {"messages": [{"role": "user", "content": [image]}]} | added


IMAGES = Group(
    "images",
    (
        parts("an image", TEXT, picture(), statuses=RIGHT),
        parts("a uuid", picture(uuid="u"), says=("uuid",)),
        parts(
            "the same uuid, another image", picture(f"data:image/png;base64,{png(grey=255)}", uuid="u"), says=("uuid",)
        ),
        parts("a uuid without an image", {"type": "image_url", "image_url": None, "uuid": "u"}),
        parts("a uuid with an empty image", {"type": "image_url", "image_url": {}, "uuid": "u"}),
        parts(
            "image_url as a text",
            {"type": "image_url", "image_url": f"data:image/png;base64,{png()}"},
            TEXT,
            statuses=UNHARMED,
        ),
        parts("bare base64", picture(png()), TEXT, says=("data:",)),
        parts("another type in the URL", picture(f"data:application/octet-stream;base64,{png()}"), statuses=RIGHT),
        parts("a newline in base64", picture(f"data:image/jpeg;base64,{png()}\\n")),
        parts("a URL of the Internet", picture("https://example.org/x.jpg"), says=("data:",)),
        parts("a file", picture("file:///etc/passwd")),
        parts("audio", {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}),
        parts("audio of the Internet", {"type": "audio_url", "audio_url": {"url": "https://example.org/audio.wav"}}),
        parts("video", {"type": "video_url", "video_url": {"url": "file:///etc/passwd"}}),
        parts("four images", *[picture()] * 4, says=("image",), closes=("CVE-2026-100650",)),
        parts("an image of 7,500,000 letters", picture("data:image/png;base64," + "A" * 7_500_000)),
        parts(
            "parts of /v1/responses",
            {"type": "input_text", "text": "x"},
            {"type": "input_image", "image_url": f"data:image/png;base64,{png()}"},
            statuses=UNHARMED,
        ),
        parts("embeddings", {"type": "image_embeds", "image_embeds": "AAAA"}, closes=("CVE-2026-73557",)),
        plain("prompt_embeds", "/v1/completions", added={"prompt_embeds": "AAAA"}),
        messages(
            "an image in a tool's answer",
            [{"role": "user", "content": "x"}, {"role": "tool", "tool_call_id": "c", "content": [picture()]}],
            says=("image",),
        ),
        *(
            case
            for shade, (name, added) in enumerate(REFUSED_LATE.items(), start=200)
            for case in (
                fields(f"an image, then refused: {name}", made=partial(with_image, shade, added)),
                fields(f"the same image, after {name}", made=partial(with_image, shade, {}), statuses=RIGHT),
            )
        ),
        parts(
            "an unknown part that looks like text", {"type": "te[t", "text": "x"}, says=("content[0].type", "image_url")
        ),
        parts("an unknown part", {"type": "nosuch", "nosuch": 1}),
        parts(
            "Gemma's tokens spelt in text",
            {"type": "text", "text": "<|image|><image|><|audio|><|image>"},
            statuses=UNHARMED,
            closes=("CVE-2026-44222",),
        ),
        parts(
            "another model's tokens spelt in text",
            {"type": "text", "text": "<|vision_start|><|image_pad|><|vision_end|><image>"},
            statuses=RIGHT,
        ),
        plain(
            "a bad image for messages",
            MESSAGES,
            added={
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
                        ],
                    }
                ]
            },
            closes=("CVE-2026-54236",),
        ),
    ),
)


def raw(name: str, text: bytes, **right: Any) -> Case:
    """Return the case with these bytes as the body; `MODEL` is replaced by the model's name."""
    return Case(name, lambda target: text.replace(b"MODEL", target.model.encode()), **right)


half_an_emoji = raw(
    "half an emoji",
    rb'{"model": "MODEL", "max_tokens": 4, "messages": [{"role": "user", "content": "\ud83d"}]}',
    statuses=UNHARMED,
)
"""vLLM tokenizes all prompts of 2 ms in one call: this one makes all of them fail (`utils/async_utils.py`)."""


def deep(_target: Target) -> bytes:
    """Return JSON nested 100,000 levels deep."""
    return b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


SHAPES = Group(
    "bodies nobody expects",
    (
        *(half_an_emoji,) * 30,
        Case("JSON nested 100,000 deep", deep, says=("request body",)),
        raw(
            "JSON nested in an unknown field",
            b'{"model": "MODEL", "x": '
            + b"[" * 900
            + b"]" * 900
            + b', "max_tokens": 4, "messages": [{"role": "user", "content": "x"}]}',
            statuses=UNHARMED,
        ),
        raw("a comma too many", b'{"model": "MODEL", "messages": [{"role": "user", "content": "x"}],}', says=("JSON",)),
        raw(
            "a byte order mark",
            b'\xef\xbb\xbf{"model": "MODEL", "max_tokens": 4, "messages": [{"role": "user", "content": "x"}]}',
            statuses=UNHARMED,
        ),
        raw("no JSON", b"hello", says=("JSON",)),
        raw("a list", b"[]", says=("JSON",)),
        raw("nothing", b"", says=("JSON",)),
        raw("a number of 5,000 digits", b'{"model": "MODEL", "seed": ' + b"9" * 5000 + b', "messages": []}'),
        raw(
            "a doubled field",
            b'{"model": "MODEL", "bad_words": [], "bad_words": [""], "messages": [{"role": "user", "content": "x"}]}',
        ),
        raw(
            "an escaped field",
            rb'{"model": "MODEL", "\u0062ad_words": [""], "messages": [{"role": "user", "content": "x"}]}',
        ),
        messages("messages that are none", [None]),
        messages("a message without a role", [{"content": "x"}]),
        messages(
            "a tool call without a function",
            [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [{}]}],
            statuses=UNHARMED,
        ),
        messages(
            "tool calls of bad JSON",
            [
                {"role": "user", "content": "x"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}],
                },
            ],
            statuses=UNHARMED,
        ),
        messages("content of null", [{"role": "user", "content": None}], statuses=UNHARMED),
        plain("stream_options without a stream", added={"stream_options": {"include_usage": True}}),
        plain("a background response", RESPONSES, added={"background": True}, statuses=UNHARMED),
        plain(
            "a previous response", RESPONSES, added={"previous_response_id": "resp_x"}, statuses=frozenset({400, 404})
        ),
        plain(
            "tools without a parser",
            added={
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "now", "parameters": {"type": "object", "properties": {}}},
                    }
                ]
            },
            statuses=UNHARMED,
        ),
        plain(
            "a tool that must be called",
            added={
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "now", "parameters": {"type": "object", "properties": {}}},
                    }
                ],
                "tool_choice": "required",
            },
            statuses=UNHARMED,
        ),
        plain("another model", added={"model": "nosuch"}, statuses=frozenset({404})),
    ),
)

GROUPS = (MANY, TEMPLATES, IMAGES, SHAPES)
