"""Strict JSON and YAML: plain data of bounded depth, valid Unicode, no key twice. What is not raises ``ValueError``."""

import json
from collections.abc import Collection, Iterable
from functools import partial
from typing import Any

_DEEPEST = 64  # levels; later code recurses into what is read
_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def decode_text(data: bytes) -> str:
    """UTF-8 as text, without a byte-order mark.

    Raises:
        ValueError: If it is in another encoding.
    """
    encoding = _MARKS.get(data[:2]) or ("UTF-16" if b"\0" in data[:2] else None)
    if encoding is not None:
        raise ValueError(f"the text is {encoding}; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"the text is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def parse_json(data: bytes | str, *, without: Collection[str] = ()) -> Any:
    """The value of a JSON text.

    Args:
        data: The text, or its bytes in UTF-8.
        without: Keys that are dropped from every object while it is read, with their values.

    Raises:
        ValueError: If it is no JSON (then a ``json.JSONDecodeError``), not UTF-8, nested too deeply, or has a key twice
            or half a surrogate pair.
    """
    text = decode_text(data) if isinstance(data, bytes) else data
    try:
        value = json.loads(text, object_pairs_hook=partial(_unique, without=without) if without else _unique)
    except RecursionError:
        raise _too_deep() from None
    if text.count("[") + text.count("{") > _DEEPEST or "\\ud" in text or "\\uD" in text:
        check_plain(value)
    return value


def parse_yaml(text: str) -> Any:
    """The value of a YAML text without aliases.

    Raises:
        ValueError: If it is no YAML, is nested too deeply, or has an alias, a key twice or a date that does not exist.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses aliases, of which a few make millions of values, and repeated keys."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases (*name) are not read; write the value itself")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            _unique((str(key), None) for key in keys)
            return super().construct_mapping(node, deep)

    try:
        value = yaml.load(text, Loader)
    except RecursionError:
        raise _too_deep() from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    check_plain(value)
    return value


def check_plain(value: object) -> None:
    """Check the depth and the Unicode of what was read.

    Raises:
        ValueError: If it is nested too deeply, or a text has half a surrogate pair.
    """
    level: list[object] = [value]
    for _ in range(_DEEPEST):
        below: list[object] = []
        for one in level:
            if isinstance(one, dict):
                below += [*one.keys(), *one.values()]
            elif isinstance(one, list | tuple):
                below += one
            elif isinstance(one, str):
                try:
                    one.encode()
                except UnicodeEncodeError as error:
                    raise ValueError("a text has half a surrogate pair, which is no character; remove it") from error
        if not below:
            return
        level = below
    raise _too_deep()


def _unique(pairs: Iterable[tuple[str, Any]], without: Collection[str] = ()) -> dict[str, Any]:
    pairs = list(pairs)
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:40]!r} is given twice; remove one")
    for name in without:
        found.pop(name, None)
    return found


def _too_deep() -> ValueError:
    return ValueError(f"its values are nested more than {_DEEPEST} levels deep; flatten them")
