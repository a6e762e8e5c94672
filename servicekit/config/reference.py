"""`arbor config --reference`: every key, its default and its line of documentation, as YAML that can be
used.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec

from servicekit.config.convert import KeyType, allowed_form, key_type
from servicekit.config.schema import Config, Secret
from servicekit.config.units import format_duration, format_size


def reference() -> str:
    """Return the commented YAML. Loaded as it stands it gives the defaults."""
    head = [
        "# Every configuration key with its default. Paths are relative to this file. What follows from",
        "# another key, data_dir mostly, is commented out. The environment (ARBOR_ROOMS__DEFAULT_VERSION=11)",
        "# and flags (--set rooms.default_version=11) override the file.",
        "",
    ]
    return "\n".join([*head, *_section(Config, 0)]) + "\n"


def _section(struct: type[msgspec.Struct], depth: int) -> Iterator[str]:
    indent = "  " * depth
    for field in msgspec.structs.fields(struct):
        kt = key_type(field.type)
        default = None if field.required else field.default
        if default is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        name = field.encode_name
        if isinstance(default, msgspec.Struct) and _is_leaf(default):
            yield f"{indent}{name}: {_inline(default)}  # {kt.description}"
        elif isinstance(default, msgspec.Struct):
            yield ""
            yield f"{indent}{name}:  # {kt.description}"
            yield from _section(type(default), depth + 1)
        elif field.name == "server_name":
            yield f"{indent}{name}: localhost  # {kt.description}"
        elif kt.kind == "derived":
            # Not set, so that it goes on following data_dir.
            yield f"{indent}# {name}: {_scalar(kt, default)}  # {_comment(kt, default)}"
        else:
            yield f"{indent}{name}: {_scalar(kt, default)}  # {_comment(kt, default)}"


def _is_leaf(value: msgspec.Struct) -> bool:
    return type(value).__name__ == "RateLimit"


def _inline(value: msgspec.Struct) -> str:
    parts = []
    for field in msgspec.structs.fields(value):
        item = getattr(value, field.name)
        if item is not None and not (isinstance(item, tuple) and not item):
            parts.append(f"{field.encode_name}: {_scalar(key_type(field.type), item)}")
    return "{" + ", ".join(parts) + "}"


def _scalar(kt: KeyType, value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, tuple):
        item_type = key_type(get_args(kt.base)[0]) if get_origin(kt.base) is tuple else kt
        items = (_inline(v) if isinstance(v, msgspec.Struct) else _scalar(item_type, v) for v in value)
        return "[" + ", ".join(items) + "]"
    if isinstance(value, dict):
        return "{}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if kt.kind == "duration":
        return format_duration(value)
    if kt.kind == "size":
        return format_size(value)
    if isinstance(value, Path):
        return f"./{value}"
    if isinstance(value, str):
        plain = not isinstance(value, Secret) and value.replace("-", "").replace("_", "").isalpha()
        return value if plain else f'"{value}"'
    return f"{value:g}" if isinstance(value, float) else str(value)


def _comment(kt: KeyType, value: Any) -> str:
    base_form = allowed_form(kt)
    return f"{kt.description}; {base_form}" if base_form.startswith("one of") else kt.description
