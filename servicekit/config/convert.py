"""Plain values (of YAML, the environment, flags) to the structs of `schema`, with useful errors.

Every error names the key's path, what was found and what is allowed; a mistyped name gets its nearest
neighbour.
"""

import difflib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import msgspec
import yaml

from servicekit.config.errors import ConfigError
from servicekit.config.schema import Secret
from servicekit.config.units import DURATION_FORM, SIZE_FORM, parse_duration, parse_size


class RawText(str):
    """A text of the environment or a flag: it has no type yet, the key's type decides what it means."""

    __slots__ = ()


class KeyType(NamedTuple):
    """A key's type taken apart."""

    base: Any
    optional: bool
    kind: str | None
    metas: tuple[msgspec.Meta, ...]

    @property
    def description(self) -> str:
        """The key's line of documentation."""
        return next((m.description for m in reversed(self.metas) if m.description), "")


def key_type(annotation: Any) -> KeyType:
    """Take an annotation apart: `Annotated[Duration | None, doc("…")]` is (float, optional, ...)."""
    metas: list[msgspec.Meta] = []
    optional = False
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            annotation, *found = get_args(annotation)
            metas = [*(meta for meta in found if isinstance(meta, msgspec.Meta)), *metas]
        elif origin in (Union, types.UnionType):
            optional = True
            (annotation,) = [arg for arg in get_args(annotation) if arg is not type(None)]
        else:
            break
    kind = next((m.extra["kind"] for m in metas if m.extra and "kind" in m.extra), None)
    return KeyType(annotation, optional, kind, tuple(metas))


def allowed_form(kt: KeyType) -> str:
    """Say in words what a key takes."""
    base = kt.base
    if kt.kind == "duration":
        form = DURATION_FORM
    elif kt.kind == "size":
        form = SIZE_FORM
    elif kt.kind == "version":
        form = 'a room version such as "12"'
    elif get_origin(base) is Literal:
        form = "one of " + ", ".join(str(arg) for arg in get_args(base))
    elif get_origin(base) is tuple:
        form = "a list"
    elif get_origin(base) is dict or (isinstance(base, type) and issubclass(base, msgspec.Struct)):
        form = "a mapping"
    else:
        form = {bool: "true or false", int: "a whole number", float: "a number", Path: "a path"}.get(
            base, "a text"
        )
        bounds = [
            f"{word} {getattr(meta, name)}"
            for meta in kt.metas
            for name, word in (("ge", "at least"), ("gt", "more than"), ("le", "at most"))
            if getattr(meta, name) is not None
        ]
        form = " ".join([form, " and ".join(bounds)]).strip()
    return f"{form}, or null" if kt.optional else form


def convert(annotation: Any, value: Any, path: str, base_dir: Path) -> Any:
    """Return `value` as the type of `annotation`. `path` is the key's, for errors; `base_dir` is for relative
    paths.

    Raises:
        ConfigError: the value, or one inside it, is not what the key takes; or a name inside it is not known.
    """
    kt = key_type(annotation)
    if kt.optional and (value is None or (isinstance(value, RawText) and value in ("", "null"))):
        return None
    result = _convert_present(kt, value, path, base_dir)
    if result is None:
        shown = "an empty value" if value is None else f"{_shown(kt, value)} ({_type_name(value)})"
        raise ConfigError(f"found {shown}; allowed: {allowed_form(kt)}", path=path)
    return result


def _convert_present(kt: KeyType, value: Any, path: str, base_dir: Path) -> Any:
    """Return the converted value, or None where it does not fit."""
    base = kt.base
    if get_origin(base) is tuple:
        if isinstance(value, RawText):
            value = _parse_structure(value, path)
        if not isinstance(value, list | tuple):
            return None
        return tuple(
            convert(get_args(base)[0], item, f"{path}[{n}]", base_dir) for n, item in enumerate(value)
        )
    if get_origin(base) is dict:
        if isinstance(value, RawText):
            value = _parse_structure(value, path)
        if not isinstance(value, Mapping):
            return None
        return {
            str(key): convert(get_args(base)[1], item, f"{path}.{key}", base_dir)
            for key, item in value.items()
        }
    if isinstance(base, type) and issubclass(base, msgspec.Struct):
        if isinstance(value, RawText):
            value = _parse_structure(value, path)
        return convert_struct(base, value, path, base_dir) if isinstance(value, Mapping) else None
    return _convert_scalar(kt, value, base_dir)


def convert_struct(struct: type[msgspec.Struct], value: Mapping[Any, Any], path: str, base_dir: Path) -> Any:
    """Return a mapping as `struct`; unknown and missing names raise ConfigError."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    converted: dict[str, Any] = {}
    for name, item in value.items():
        here = f"{path}.{name}" if path else str(name)
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            where = f"in {path}" if path else "at the top level"
            raise ConfigError(f"unknown key.{hint} Known {where}: {', '.join(sorted(fields))}", path=here)
        field = fields[name]
        # An empty section (`push:` with nothing below it) is the section with its defaults.
        if item is None and isinstance(field.default, msgspec.Struct):
            continue
        converted[field.name] = convert(field.type, item, here, base_dir)
    for name, field in fields.items():
        if field.name not in converted and field.required:
            raise ConfigError(
                f"missing; allowed: {allowed_form(key_type(field.type))}",
                path=f"{path}.{name}" if path else name,
            )
    return struct(**converted)


def _convert_scalar(kt: KeyType, value: Any, base_dir: Path) -> Any:
    result: Any = None
    if kt.kind in ("duration", "size"):
        if isinstance(value, str):
            result = parse_duration(value) if kt.kind == "duration" else parse_size(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            result = float(value) if kt.kind == "duration" else int(value) if value == int(value) else None
    elif get_origin(kt.base) is Literal:
        result = next((a for a in get_args(kt.base) if value == a or _same_word(value, a)), None)
    elif kt.base is bool:
        result = _boolean(value)
    elif kt.base is int:
        result = _number(value, int)
    elif kt.base is float:
        result = _number(value, float)
    elif kt.base is Path:
        result = (base_dir / Path(value).expanduser()) if isinstance(value, str) and value else None
    elif kt.kind == "version" and isinstance(value, int) and not isinstance(value, bool):
        result = str(value)
    elif isinstance(value, str):
        result = Secret(value) if kt.base is Secret else str(value)
    if kt.kind == "url" and isinstance(result, str) and "://" not in result:
        return None
    return result if result is not None and _within_bounds(kt, result) else None


def _same_word(value: Any, allowed: Any) -> bool:
    # YAML reads a bare `none`, `on` or a number as something else than the word, and the environment has
    # texts only.
    return isinstance(value, RawText) and str(value) == str(allowed)


def _boolean(value: Any) -> bool | None:
    if isinstance(value, RawText):
        return {"true": True, "false": False, "1": True, "0": False}.get(value.lower())
    return value if isinstance(value, bool) else None


def _number(value: Any, kind: type[int] | type[float]) -> int | float | None:
    if isinstance(value, RawText):
        try:
            return kind(value)
        except ValueError:
            return None
    if isinstance(value, bool):
        return None
    if kind is float and isinstance(value, int | float):
        return float(value)
    return value if isinstance(value, int) else None


def _within_bounds(kt: KeyType, value: Any) -> bool:
    return all(
        (meta.ge is None or value >= meta.ge)
        and (meta.gt is None or value > meta.gt)
        and (meta.le is None or value <= meta.le)
        for meta in kt.metas
    )


def _parse_structure(text: str, path: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"found {text!r}, which is not YAML: {error}", path=path) from error


def _shown(kt: KeyType, value: Any) -> str:
    if kt.base is Secret or "password" in str(kt.kind):
        return "a secret that is not shown"
    text = repr(str(value) if isinstance(value, RawText) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _type_name(value: Any) -> str:
    names = {bool: "true/false", int: "a number", float: "a number", dict: "a mapping", list: "a list"}
    return names.get(type(value), "a text")
