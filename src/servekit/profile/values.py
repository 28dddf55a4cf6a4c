"""The values a profile is made of."""

from pydantic import JsonValue

Value = JsonValue
"""What YAML and JSON have in common: text, numbers, booleans, lists and mappings with text as keys."""

KeyPath = tuple[str, ...]
"""Where a value is in the file: the keys that lead to it; a list's item is `[0]`."""

Lines = dict[KeyPath, int]
"""The line, from 1, of each key and each item."""
