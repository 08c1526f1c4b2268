"""Configs are frozen dataclasses: to and from JSON and text, hashed, compared, explained.

Fields may be bool, int, float, str, an enum, another such dataclass, `tuple[X, ...]`, `tuple[X,
Y]`, a union of these (`X | None` above all), or `object` for plain JSON. Infinities, unknown to
JSON, are written "inf", "-inf" and "nan". What is wrong with a value is told in one sentence that
names the field. No JAX here, so that command lines answer at once.
"""

import ast
import dataclasses
import difflib
import enum
import functools
import hashlib
import inspect
import io
import json
import math
import tokenize
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_ABSENT = object()


class UsageError(ValueError):
    """Bad input from outside: its text is one sentence, what was wrong and what would be right."""


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """What to say after "unknown x": the likeliest of `known`, and all of them if they are few.

    `prefix` is written before each name, and takes no part in the likeness.
    """
    known = sorted(known)
    by_folded = {name.casefold(): name for name in reversed(known)}
    close = difflib.get_close_matches(word.casefold(), by_folded, n=2, cutoff=0.6)
    guess = _either([prefix + by_folded[name] for name in close])
    guess = f"did you mean {guess}?" if close else ""
    if guess and len(known) > 20:
        return guess
    more = f" and {len(known) - 30} more" if len(known) > 30 else ""
    listed = ", ".join(prefix + name for name in known[:30])
    return f"{guess} {'Known' if guess else 'known'}: {listed or 'none'}{more}.".strip()


def to_json(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON: enums by value, tuples as lists, nested dataclasses as objects."""
    return _encode(config, type(config).__name__)


def from_json(cls: type[T], data: Mapping[str, Any], names: Mapping[str, Any] | None = None) -> T:
    """The inverse of `to_json`; a field that `data` lacks takes its default.

    Args:
        cls: a dataclass.
        data: a JSON object.
        names: what string annotations of `cls` stand for, where its module does not know them.

    Raises:
        UsageError: unknown field, missing field without default, or a value of the wrong type.
    """
    return _decode_dataclass(cls, data, "", names)


def from_text(hint: Any, text: str) -> Any:
    """A field's value as typed on a command line; tuples with or without brackets.

    Enums go by value or name in any case, None as "None", and whole numbers may be typed 1e6.

    Raises:
        UsageError: `text` is no such value; says what would be.
    """
    try:
        return _decode(hint, _read_text(hint, text.strip()), "")
    except UsageError:
        raise UsageError(f"should be {describe(hint)}, got {text!r}.") from None


def describe(hint: Any) -> str:
    """A type in words, e.g. "a float or None"."""
    if _is_union(hint):
        return _either([describe(member) for member in typing.get_args(hint)])
    if typing.get_origin(hint) is tuple:
        members = typing.get_args(hint)
        if members[-1] is ...:
            return f"a tuple, each item {describe(members[0])}"
        return f"a tuple of {len(members)}: {', '.join(map(describe, members))}"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return f"one of {', '.join(str(member.value) for member in hint)}"
    if dataclasses.is_dataclass(hint):
        return f"an object with {', '.join(field.name for field in dataclasses.fields(hint))}"
    words = {bool: "true or false", int: "an int", float: "a float", str: "a string"}
    return words.get(hint, "None" if hint is types.NoneType else "a JSON value")


def stable_hash(config: Any) -> str:
    """SHA-256, in hex, of the config's values: the same in every run, in any order of fields."""
    text = json.dumps(_canonical(to_json(config)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def diff(old: Any, new: Any) -> list[str]:
    """One line a field that differs, "learning_rate: 0.0003 -> 0.001"; `[]` if none does.

    Args:
        old: a dataclass, or its JSON.
        new: likewise; a field that only one of them has is shown as absent in the other.
    """
    before, after = _flatten(old), _flatten(new)
    return [
        f"{name}: {_show(before.get(name, _ABSENT))} -> {_show(after.get(name, _ABSENT))}"
        for name in {**before, **after}
        if before.get(name, _ABSENT) != after.get(name, _ABSENT)
    ]


def type_hints(cls: type) -> dict[str, Any]:
    """The type of each field, string annotations resolved."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@functools.cache
def comments(cls: type) -> dict[str, str]:
    """The comment behind each field in the dataclass's source, "" where there is none.

    Fields that it inherits come first, with the comments of where they were last said.
    """
    inherited = {}
    for base in cls.__bases__:
        inherited |= comments(base) if dataclasses.is_dataclass(base) else {}
    source = inspect.cleandoc("\n" + inspect.getsource(cls))
    (node,) = ast.parse(source).body
    by_line = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    return inherited | {
        line.target.id: by_line.get(line.end_lineno or line.lineno, "")
        for line in typing.cast(ast.ClassDef, node).body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    }


def _either(words: Sequence[str]) -> str:
    """Joins words as "a, b or c"."""
    return " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _encode(value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(value):
        return {
            field.name: _encode(getattr(value, field.name), f"{path}.{field.name}")
            for field in dataclasses.fields(value)
        }
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [_encode(item, path) for item in value]
    if isinstance(value, dict):
        return {str(key): _encode(item, f"{path}.{key}") for key, item in value.items()}
    if type(value) is float and not math.isfinite(value):
        return str(value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{path} cannot be written as JSON: it is a {type(value).__name__}.")


def _decode(hint: Any, value: Any, path: str) -> Any:
    if _is_union(hint):
        return _decode_union(hint, value, path)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return _decode_dataclass(hint, value, path)
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        members = typing.get_args(hint)
        if members[-1] is ...:
            members = (members[0],) * len(value)
        if len(members) == len(value):
            return tuple(_decode(*pair, path) for pair in zip(members, value, strict=True))
    elif isinstance(hint, type) and issubclass(hint, enum.Enum):
        for member in hint:
            if value == member.value:
                return member
    elif hint in (object, Any):
        return tuple(_decode(hint, item, path) for item in value) if type(value) is list else value
    elif hint is float and (type(value) in (int, float) or value in ("inf", "-inf", "nan")):
        return float(value)
    elif hint in (bool, int, str, types.NoneType) and type(value) is hint:
        return value
    raise UsageError(f"{path} should be {describe(hint)}, got {json.dumps(value, default=str)}.")


def _decode_union(hint: Any, value: Any, path: str) -> Any:
    members = typing.get_args(hint)
    objects = [member for member in members if dataclasses.is_dataclass(member)]
    if isinstance(value, Mapping) and len(objects) == 1:
        return _decode(objects[0], value, path)  # which says what is wrong within
    for member in members:
        try:
            return _decode(member, value, path)
        except UsageError:
            continue
    raise UsageError(f"{path} should be {describe(hint)}, got {json.dumps(value, default=str)}.")


def _decode_dataclass(
    cls: Any, data: Mapping[str, Any], path: str, names: Mapping[str, Any] | None = None
) -> Any:
    hints = typing.get_type_hints(cls, localns=names)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    prefix = f"{path}." if path else ""
    for name in data:
        if not isinstance(name, str):
            raise UsageError(f"{prefix}{name!r} should be the name of a field, in quotes.")
        if name not in fields:
            raise UsageError(f"{prefix}{name} is no known field; {nearest(name, fields)}")
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise UsageError(f"{prefix}{name} is missing; it should be {describe(hints[name])}.")
    return cls(**{name: _decode(hints[name], data[name], prefix + name) for name in data})


def _read_text(hint: Any, text: str) -> Any:
    """Text as the JSON value that `_decode` takes for `hint`; the text itself where it is none."""
    if _is_union(hint):
        if types.NoneType in typing.get_args(hint) and text.casefold() in ("none", "null"):
            return None
        (hint, *_) = (m for m in typing.get_args(hint) if m is not types.NoneType)
    if typing.get_origin(hint) is tuple:
        return _read_tuple(hint, text)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        for member in hint:
            if text.casefold() in (str(member.value).casefold(), member.name.casefold()):
                return member.value
    if hint is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.casefold(), text)
    if hint in (int, float):
        return _read_number(hint, text)
    return text


def _read_number(hint: Any, text: str) -> Any:
    try:
        return hint(text)
    except ValueError:
        pass
    try:  # 1e6 for an int
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() else text


def _read_tuple(hint: Any, text: str) -> Any:
    members = typing.get_args(hint)
    if any(typing.get_origin(member) is tuple for member in members):
        try:
            return ast.literal_eval(text)
        except (SyntaxError, ValueError):
            return text
    if text[:1] + text[-1:] in ("()", "[]"):
        text = text[1:-1]
    parts = [part.strip() for part in text.removesuffix(",").split(",")] if text.strip() else []
    if members[-1] is ...:
        members = (members[0],) * len(parts)
    if len(members) != len(parts):
        return text
    return [_read_text(*pair) for pair in zip(members, parts, strict=True)]


def _canonical(value: Any) -> Any:
    """Equal values in equal JSON: 1.0 is written 1, as Python holds them equal."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    data = to_json(config) if dataclasses.is_dataclass(config) else config
    flat = {}
    for name, value in data.items():
        flat |= _flatten(value, f"{prefix}{name}.") if _is_object(value) else {prefix + name: value}
    return flat


def _is_object(value: Any) -> bool:
    return dataclasses.is_dataclass(value) or isinstance(value, Mapping)


def _show(value: Any) -> str:
    return "absent" if value is _ABSENT else json.dumps(value)
