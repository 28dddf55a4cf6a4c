"""Shapes of messages and tools that vLLM 0.20.2 reads before or without validating them.

It answers 500 to others, or with the text of a Python error: in `check_tool_usage` of each request model, in
`_postprocess_messages` (`entrypoints/chat_utils.py`), in `_construct_single_message_from_response_item`
(`entrypoints/openai/responses/utils.py`), and in the template.
"""

from typing import Any

from .bounds import BodyError

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
ITEMS = ("message", "function_call", "function_call_output", "reasoning")
"""Of the input of `/v1/responses`: what vLLM makes a prompt of."""
ROLES = ("user", "assistant", "system", "developer")
"""Of a message. `/v1/responses` has no others; the template decides about those of a chat."""


def check_shapes(fields: dict[str, Any], path: str) -> None:
    """Check tools, messages and their tool calls; raises BodyError. Joins the texts of earlier answers."""
    if path == COMPLETIONS:
        return
    _check_calls("tools", fields.get("tools"), "function" if path == CHAT else None)
    of_responses = path == RESPONSES
    name = "input" if of_responses else "messages"
    items = fields.get(name, ())
    if items is None:
        raise BodyError(f"{name} must not be null.", name)
    messages = [each for each in items if isinstance(each, dict)] if isinstance(items, list) else []
    for number, message in enumerate(messages):
        _check_item(f"{name}[{number}]", message, of_responses=of_responses)
    if path.startswith(MESSAGES):
        if messages and all(_is_empty(message.get("content")) for message in messages):
            raise BodyError("messages: at least one must have content.", "messages")
        _check_choice(fields.get("tool_choice"), fields.get("tools") or ())


def _check_item(where: str, item: dict[str, Any], *, of_responses: bool) -> None:
    kind, role = item.get("type", "message") if of_responses else "message", item.get("role")
    if kind not in ITEMS:
        raise BodyError(f"{where}.type must be one of {', '.join(ITEMS)}.", f"{where}.type")
    if kind == "message" and not (role in ROLES if of_responses else isinstance(role, str)):
        raise BodyError(f"{where}.role must be one of {', '.join(ROLES)}.", f"{where}.role")
    _check_calls(f"{where}.tool_calls", item.get("tool_calls"), "function")
    if of_responses:
        _join_texts(item)


def _check_choice(choice: Any, tools: Any) -> None:
    """Check that a tool that must be called exists: only here vLLM sets the choice after its own check of it."""
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind in ("any", "tool") and not tools:
        raise BodyError("tool_choice: the request has no tools.", "tool_choice")
    if kind == "tool" and choice.get("name") not in [tool.get("name") for tool in tools]:
        raise BodyError("tool_choice.name must be the name of one of the tools.", "tool_choice.name")


def _is_empty(content: Any) -> bool:
    """Return whether vLLM finds nothing in the content of a message of Anthropic's."""
    return isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and not part.get("text") for part in content
    )


def _join_texts(message: dict[str, Any]) -> None:
    """Make one text of an earlier answer's parts, as clients send it back.

    OpenAI needs no more of a part than its text. vLLM 0.20.2 requires an id, a status and annotations, and then reads
    the first part only (`entrypoints/openai/responses/utils.py`); beside an id it takes a text for a list of letters.
    """
    parts = message.get("content")
    if message.get("role") != "assistant" or message.get("status", "completed") != "completed":
        return
    if isinstance(parts, list):
        texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "output_text"]
        known = [text for text in texts if isinstance(text, str)]
        if len(known) == len(parts):
            message["content"] = "".join(known)
    if isinstance(message.get("content"), str):
        message.pop("id", None)


def _check_calls(where: str, items: Any, member: str | None) -> None:
    """Check that this is a list of objects, which have this member, an object too; or nothing."""
    if items is None:
        return
    if not isinstance(items, list):
        raise BodyError(f"{where} must be a list.", where)
    for number, item in enumerate(items):
        name = f"{where}[{number}]"
        if not isinstance(item, dict):
            raise BodyError(f"{name} must be an object.", name)
        if member and not isinstance(item.get(member), dict):
            raise BodyError(f"{name}.{member} must be an object: this server calls functions only.", f"{name}.{member}")
