"""The verdict on every field of vLLM 0.20.2's request models on the open routes.

`request_fields.json` lists those fields (`make request-fields`); a test fails for a field without a verdict here. A
field that vLLM does not know passes, as it passes vLLM. Nested fields are judged by their name, at any depth.
"""

from typing import Any

from .verdicts import Bias, Items, Number, Passed, Refused, Rule, Special, Text, TokenIds, are_token_ids

MAX_MESSAGES = 2_048
"""Each message costs vLLM's server some 30 microseconds on its event loop; 100,000 blocked it for three seconds."""
MAX_LOGPROBS = 20
"""OpenAI's limit, and vLLM's `max-logprobs`. Each is a word looked up on the event loop, for every token."""
MAX_SEQUENCES = 256
"""Sequences that one request may start: prompts times `n`."""
TEMPLATE_KWARGS = frozenset({"enable_thinking", "thinking"})
"""What a client may pass to the chat template. Others change the template's variables; `chat_template` replaces it."""
MAX_PATTERN = 64
"""The longest repeated pattern that EngineCore searches for after every token."""
MAX_WORD_CHARS = 1_024
"""Of a name, a label or an id."""


def _check_template_kwargs(value: Any, _vocabulary_size: int) -> str | None:
    if not isinstance(value, dict):
        return "must be an object"
    unknown = sorted(set(value) - TEMPLATE_KWARGS)
    if unknown:
        return f"may only contain {' and '.join(sorted(TEMPLATE_KWARGS))} (got {unknown[0]!r:.40})"
    only_switches = all(isinstance(item, (bool, type(None))) for item in value.values())
    return None if only_switches else "may only contain true and false"


def _check_repetition(value: Any, _vocabulary_size: int) -> str | None:
    numbers = value.values() if isinstance(value, dict) else ()
    if any(isinstance(number, (int, float)) and number > MAX_PATTERN for number in numbers):
        return (
            f"must not have a number over {MAX_PATTERN}: the engine's scheduler searches for patterns after every token"
        )
    return None


def _check_prompt(value: Any, vocabulary_size: int) -> str | None:
    kinds = set(map(type, value)) if isinstance(value, list) else {str}
    if kinds == {str}:
        return None
    prompts = value if kinds == {list} else [value]
    if all(are_token_ids(prompt, vocabulary_size) for prompt in prompts):
        return None
    return f"must be text or token ids from 0 to {vocabulary_size - 1}"


_ENGINE = "vLLM checks it, and it costs nothing"
_IGNORED = "vLLM 0.20.2 ignores it here"
_SWITCH = Passed("true or false")
_PENALTY = Number("OpenAI's range; slices.py and admission.py limit its memory", -2, 2)
_LENGTH = Number("the engine checks it against max-model-len", 1, 2**31 - 1)
_WORD = Text("copied into answers and logs", MAX_WORD_CHARS)
_STOP = Items("searched for in the text of every token, on the event loop", 32, max_chars=256)
_TOOLS = Items("OpenAI's limit; structured.py limits the schemas", 128)
_INTO_OTHERS = "in vLLM 0.20.2 it changes other requests' answers"

SAMPLING: dict[str, Rule] = {
    "temperature": Number("a divisor of the logits", 0, 100),
    "top_p": Number(_ENGINE, 0, 1),
    "top_k": Number(_ENGINE, -1, 2**31 - 1),
    "seed": Passed(_ENGINE),
    "presence_penalty": _PENALTY,
    "frequency_penalty": _PENALTY,
    "repetition_penalty": Number(_PENALTY.why, 0, 10),
    "logit_bias": Bias("an id outside the vocabulary would index the logits", 1_024),
    "stop": _STOP,
    "ignore_eos": _SWITCH,
    "include_stop_str_in_output": _SWITCH,
    "skip_special_tokens": _SWITCH,
}
"""What chat, completions and responses share."""

TEXT_SAMPLING: dict[str, Rule] = SAMPLING | {
    "n": Number("each is a separate sequence", 1, MAX_SEQUENCES),
    "min_p": Number(_ENGINE, 0, 1),
    "length_penalty": Number("only beam search reads it", -1_000, 1_000),
    "min_tokens": Number("the engine checks it against max_tokens", 0, 2**31 - 1),
    "max_tokens": _LENGTH,
    "stop_token_ids": TokenIds("an id outside the vocabulary ends EngineCore when min_tokens is set", 256),
    "spaces_between_special_tokens": _SWITCH,
    "prompt_logprobs": Number(
        "admission.py limits it together with the prompt's length, slices.py its memory", 0, MAX_LOGPROBS
    ),
    "use_beam_search": Refused("it sends every beam through the server's event loop after each token"),
    "truncate_prompt_tokens": Refused("it removes the placeholder of an image from the prompt"),
    "allowed_token_ids": Refused(_INTO_OTHERS),
    "repetition_detection": Special("EngineCore compares tokens after every token", _check_repetition),
    "return_tokens_as_token_ids": _SWITCH,
    "return_token_ids": _SWITCH,
    "add_special_tokens": _SWITCH,
}
"""What chat and completions share."""

REQUEST: dict[str, Rule] = {
    "model": _WORD,
    "user": _WORD,
    "stream": _SWITCH,
    "priority": Passed(_ENGINE),
    "cache_salt": Text("part of the prefix cache's hash", MAX_WORD_CHARS),
    "request_id": Passed("it has no effect: the header X-Request-Id names a request"),
    "structured_outputs": Passed("structured.py limits it"),
    "kv_transfer_params": Refused("this server has no KV connector"),
    "vllm_xargs": Refused("this server has no extension that reads it"),
}
"""How a request is handled."""

MEDIA: dict[str, Rule] = {
    "mm_processor_kwargs": Refused(
        """it changes options of the image processor: {"do_resize": false} ends EngineCore"""
    ),
    "media_io_kwargs": Refused("it changes options of the image decoder"),
}

PROMPT_OF_MESSAGES: dict[str, Rule] = {
    "model": _WORD,
    "messages": Items("parsed on the event loop", MAX_MESSAGES, min_items=1),
    "system": Items("text of the prompt", MAX_MESSAGES),
    "tools": _TOOLS,
    "tool_choice": Passed(_ENGINE),
    "chat_template_kwargs": Special("they change variables of the template", _check_template_kwargs),
}
"""What Anthropic's routes share."""

ROUTES: dict[str, dict[str, Rule]] = {
    "/v1/chat/completions": TEXT_SAMPLING
    | REQUEST
    | MEDIA
    | {
        "messages": Items("parsed on the event loop", MAX_MESSAGES, min_items=1),
        "logprobs": _SWITCH,
        "top_logprobs": Number("each is a word looked up for every token", 0, MAX_LOGPROBS),
        "max_completion_tokens": _LENGTH,
        "response_format": Passed("structured.py limits it"),
        "stream_options": Items("two switches, true or false", 16),
        "tools": _TOOLS,
        "tool_choice": Passed(_ENGINE),
        "reasoning_effort": Passed(_ENGINE),
        "thinking_token_budget": Number(_ENGINE, 0, 2**31 - 1),
        "include_reasoning": _SWITCH,
        "parallel_tool_calls": _SWITCH,
        "bad_words": Refused(_INTO_OTHERS),
        "echo": _SWITCH,
        "add_generation_prompt": _SWITCH,
        "continue_final_message": _SWITCH,
        "documents": Refused("this model's template does not use them"),
        "chat_template": Refused("a template is a program"),
        "chat_template_kwargs": Special("they change variables of the template", _check_template_kwargs),
    },
    "/v1/completions": TEXT_SAMPLING
    | REQUEST
    | {
        "prompt": Special("vLLM's check of token ids is off by one, which ends EngineCore", _check_prompt),
        "logprobs": Number("each is a word looked up for every token", 0, MAX_LOGPROBS),
        "stream_options": Items("two switches, true or false", 16),
        "echo": Passed("with logprobs it is limited like prompt_logprobs"),
        "suffix": Passed("vLLM 0.20.2 rejects it"),
        "prompt_embeds": Refused("embeddings are turned off"),
        "response_format": Passed("structured.py limits it"),
    },
    "/v1/responses": SAMPLING
    | REQUEST
    | MEDIA
    | {
        "input": Items("validated on the event loop", MAX_MESSAGES, min_items=1),
        "instructions": Passed("text of the prompt"),
        "include": Items("names of fields", 16),
        "max_output_tokens": _LENGTH,
        "max_tool_calls": Passed(_IGNORED),
        "metadata": Items("OpenAI's limit; copied into the answer", 16, max_chars=MAX_WORD_CHARS),
        "background": Refused("answers are not stored"),
        "store": Passed(_IGNORED),
        "previous_response_id": Text("answers are not stored; vLLM returns that error", MAX_WORD_CHARS),
        "previous_input_messages": Refused("it is in another model's format"),
        "prompt": Passed("vLLM 0.20.2 rejects it"),
        "prompt_cache_key": _WORD,
        "parallel_tool_calls": _SWITCH,
        "reasoning": Items("an effort and a summary", 16, max_chars=MAX_WORD_CHARS),
        "service_tier": Passed(_IGNORED),
        "text": Passed("structured.py limits it"),
        "tool_choice": Passed(_ENGINE),
        "tools": _TOOLS,
        "top_logprobs": Number("each is a word looked up for every token", 0, MAX_LOGPROBS),
        "truncation": Passed("admission.py rejects a prompt in which it cuts an image"),
        "enable_response_messages": _SWITCH,
    },
    "/v1/messages": PROMPT_OF_MESSAGES
    | {
        "max_tokens": _LENGTH,
        "metadata": Items(_IGNORED, 16, max_chars=MAX_WORD_CHARS),
        "stop_sequences": _STOP,
        "stream": _SWITCH,
        "temperature": SAMPLING["temperature"],
        "top_k": SAMPLING["top_k"],
        "top_p": SAMPLING["top_p"],
        "kv_transfer_params": REQUEST["kv_transfer_params"],
    },
    "/v1/messages/count_tokens": PROMPT_OF_MESSAGES,
}
"""By route and field."""

REFUSED_IN_PARTS: dict[str, str] = {
    "uuid": "vLLM would use the image that another client sent under the same id",
    "image_pil": "send the image as a data: URL",
    "image_embeds": "embeddings are turned off",
    "audio_embeds": "embeddings are turned off",
}
"""Members and types of a content part that are refused."""

PASSED_INSIDE: dict[str, str] = {
    "text and labels of a message or of a part of it; the limits of the body apply": (
        "annotations attributes author bytes channel closed content content_type created_by encrypted_content "
        "end_index id index logprob logprobs message name phase reasoning recipient refusal role signature "
        "start_index status summary task text thinking title token top_logprobs type user value version"
    ),
    "tool calls and what they returned: text of the prompt": (
        "acknowledged_safety_checks action actions approval_request_id approve arguments button call_id code "
        "command commands custom diff env error execution exit_code function function_call input is_error "
        "keys logs max_output_length namespace operation outcome output outputs path pending_safety_checks "
        "queries query reason result results score scroll_x scroll_y sources stderr stdout timeout_ms "
        "tool_call_id tool_calls tool_use_id variables working_directory x y"
    ),
    "an image: media.py checks its URL, its header and its pixels when it loads the image": (
        "detail file_id image_url media_type source url"
    ),
    "vLLM answers 400: audio, video and files are turned off": (
        "audio audio_url file file_data file_url filename input_audio video_url"
    ),
    "structured.py limits it": (
        "begin choice description disable_additional_properties disable_any_whitespace end format grammar "
        "input_schema json json_object json_schema parameters regex schema strict structural_tag structures "
        "triggers verbosity whitespace_pattern"
    ),
    "two switches, true or false": "continuous_usage_stats include_usage",
    "at most 64: EngineCore searches for patterns after every token": "max_pattern_size min_count min_pattern_size",
    "how much to think; vLLM checks it": "effort generate_summary",
    "redacted thinking, which vLLM drops": "data",
    "which tools exist and which to call; vLLM checks it": "mode tools",
    "a tool that OpenAI hosts: this server has none, and vLLM 0.20.2 ignores it": (
        "allowed_domains allowed_tools always authorization background city connector_id container "
        "container_id country defer_loading definition display_height display_width domain domain_secrets "
        "embedding_weight environment file_ids filters headers hybrid_search input_fidelity input_image_mask "
        "key max_num_results memory_limit model moderation network_policy never output_compression "
        "output_format partial_images pattern quality ranker ranking_options read_only region "
        "require_approval score_threshold search_content_types search_context_size server_description "
        "server_label server_url size skill_id skills syntax text_weight timezone tool_names user_location "
        "vector_store_ids"
    ),
}
"""Reason: names of nested fields that pass. vLLM spends no more on them than on reading them."""
