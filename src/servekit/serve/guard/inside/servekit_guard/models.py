"""`/v1/models` without paths of this host: vLLM 0.20.2 puts the folder of the weights into `root`.

What vLLM serves (`entrypoints/openai/models/serving.py`) is looked up by name; the path is told and nothing else.
"""

from typing import Any


def hide_paths(state: Any) -> None:
    """Let each model's and adapter's `root` be its name, as OpenAI's was when it had one."""
    serving = state.openai_serving_models
    show_available_models = serving.show_available_models

    async def show_names() -> Any:
        models = await show_available_models()
        for card in models.data:
            card.root = card.id
        return models

    serving.show_available_models = show_names
