"""Small changes to something valid: at any place of a tree, or in any byte of a file."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = [
    "CONTROLS",
    "DEEP",
    "SECRET",
    "Change",
    "as_json",
    "as_toml",
    "change_bytes",
    "change_tree",
    "places",
]

Place = tuple[str | int, ...]

SECRET = "hunter2-s3cr3t"
"""Stands in URLs; must be in nothing that is printed or written."""
# What a terminal obeys: colours, a title, a cleared screen, text from right to left.
CONTROLS = "a\x1b[31mred\x1b]0;title\x07\x1b[2J\r\nsecond line\x00\x85\u2028\u202egnp.exe\x9b1m"
DEEP = 100_000
"""Arrays within each other: far more than any parser recurses into."""
_LONG = "long " * 2000


@dataclass(frozen=True)
class Raw:
    """Text for a place of a file that no value of Python would be written as."""

    json: str
    toml: str | None = None


# No string here could be a hub's id: nothing asks a network.
_STRINGS: dict[str, Any] = {
    "empty": "",
    "space": " ",
    "controls": CONTROLS,
    "long": _LONG,
    "one long word": "x/y" * 4000,
    "a folder": ".",
    "above": "../../above this",
    "url": f"postgresql://me:{SECRET}@/x y",
    "astral": "\U0001f600 \U0010ffff e\u0301 \ufeff",
    "format": "{0.__class__} %s %n ${HOME} `id` $(id)",
    "markup": "[bold red]x[/] [link=file:///etc]y[/link] <script>alert(1)</script>",
    "nul": "a\x00b",
}
_NUMBERS: dict[str, Any] = {
    "minus one": -1,
    "zero": 0,
    "one": 1,
    "2**31": 2**31,
    "2**63": 2**63,
    "-2**63-1": -(2**63) - 1,
    "10**30": 10**30,
    "a half": 0.5,
    "tiny": 5e-324,
    "huge": 1.7e308,
    "true": True,
    "false": False,
    "nan": Raw("NaN", "nan"),
    "inf": Raw("1e999", "inf"),
    "-inf": Raw("-Infinity", "-inf"),
    "400 digits": Raw("7" * 400, "7" * 400),
    "5000 digits": Raw("7" * 5000, "7" * 5000),
}
_REST: dict[str, Any] = {
    "null": Raw("null"),
    "no list": [],
    "no table": {},
    "list": ["a", 1, None],
    "table": {"a": {"b": [1]}},
    "many": list(range(3000)),
    "deep list": Raw("[" * DEEP + "]" * DEEP, "[" * DEEP + "]" * DEEP),
    "deep table": Raw('{"a":' * DEEP + "1" + "}" * DEEP, "{a=" * DEEP + "1" + "}" * DEEP),
    "half a pair": Raw(r'"\ud800"', r'"\ud800"'),
    "a date": Raw('"2020-01-01"', "2020-01-01T00:00:00Z"),
    "nothing": Raw("", ""),
}
_VALUES = _STRINGS | _NUMBERS | _REST
_KEYS = {
    "a space": " ",
    "controls": CONTROLS,
    "long": _LONG,
    "above": "../../../above this",
    "dunder": "__class__",
}


@dataclass(frozen=True)
class Change:
    """One change to a tree.

    Attributes:
        name: Where and what.
        tree: The tree as it is then; has :class:`Raw` leaves perhaps.
    """

    name: str
    tree: Any


def places(tree: Any, at: Place = ()) -> Iterator[Place]:
    """Every place of a tree, the root first."""
    yield at
    inner = tree.items() if isinstance(tree, dict) else ()
    inner = enumerate(tree) if isinstance(tree, list) else inner
    for key, value in inner:
        yield from places(value, (*at, key))


def change_tree(tree: Any, rng: random.Random, times: int = 1) -> Change:
    """Change a tree of objects, arrays and scalars at random places."""
    names = []
    for _ in range(times):
        place = rng.choice(list(places(tree)))
        change = _change(tree, place, rng)
        tree = change.tree
        names.append(f"{'.'.join(map(str, place)) or 'root'} {change.name}")
    return Change(", ".join(names), tree)


def _change(tree: Any, place: Place, rng: random.Random) -> Change:
    old = _at(tree, place)
    parent = _at(tree, place[:-1]) if place else None
    kind = "replace"
    if place:
        kind = rng.choice(
            ["replace"] * 8 + ["drop", "drop", "wrap", "text", "key", "twice", "insert"]
        )
    name, value = rng.choice(list(_VALUES.items()))
    key_name, key = rng.choice([*_KEYS.items(), ("misspelt", f"{place[-1] if place else ''}x")])
    changed = Change(f"= {name}", _with(tree, place, value))
    if kind == "drop":
        changed = Change("dropped", _without(tree, place))
    elif kind == "wrap":
        changed = Change("in a list", _with(tree, place, [old]))
    elif kind == "text" and not isinstance(old, (dict, list, Raw)):
        swapped: Any = len(old) if isinstance(old, str) else str(old)
        changed = Change(f"as {type(swapped).__name__}", _with(tree, place, swapped))
    elif kind == "twice" and isinstance(parent, list):
        changed = Change("twice", _with(tree, place[:-1], [*parent, copy.deepcopy(old)]))
    elif kind == "key" and isinstance(parent, dict):
        changed = Change(f"key {key_name}", _with(_without(tree, place), (*place[:-1], key), old))
    elif kind == "insert" and isinstance(old, dict):
        changed = Change(f"and key {key_name}", _with(tree, (*place, key), rng.choice([1, "a b"])))
    return changed


def _at(tree: Any, place: Place) -> Any:
    for key in place:
        tree = tree[key]
    return tree


def _with(tree: Any, place: Place, value: Any) -> Any:
    if not place:
        return value
    tree = copy.copy(tree)
    tree[place[0]] = value if len(place) == 1 else _with(tree[place[0]], place[1:], value)
    return tree


def _without(tree: Any, place: Place) -> Any:
    parent = copy.copy(_at(tree, place[:-1]))
    del parent[place[-1]]
    return _with(tree, place[:-1], parent)


def as_json(tree: Any) -> str:
    """A tree as JSON, with what is raw in it."""
    if isinstance(tree, Raw):
        return tree.json
    if isinstance(tree, dict):
        inner = (f"{json.dumps(str(key))}: {as_json(value)}" for key, value in tree.items())
        return f"{{{', '.join(inner)}}}"
    if isinstance(tree, list):
        return f"[{', '.join(map(as_json, tree))}]"
    return json.dumps(tree)


def as_toml(tree: Any) -> str:
    """A tree as TOML, its sections inline tables, with what is raw in it."""
    if not isinstance(tree, dict):
        return _toml_value(tree)
    lines = (f"{json.dumps(str(key))} = {_toml_value(value)}" for key, value in tree.items())
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, Raw):
        return value.json if value.toml is None else value.toml
    if isinstance(value, dict):
        inner = (f"{json.dumps(str(k))} = {_toml_value(v)}" for k, v in value.items())
        return f"{{{', '.join(inner)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, str):
        # JSON writes what is beyond 16 bits as a pair, which TOML has no name for.
        return json.dumps(value, ensure_ascii=False).replace("\x85", "\\u0085")
    return "null" if value is None else json.dumps(value)


def change_bytes(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Damage a file: what was done, and what it holds then."""
    at = rng.randrange(len(content) or 1)
    kind = rng.choice(["cut", "flip", "flip", "zero", "insert", "lose", "swap"])
    size = rng.choice([1, 1, 4, 64, 1000])
    if kind == "cut":
        changed = content[:at]
    elif kind == "flip":
        few = bytes(byte ^ (1 << rng.randrange(8)) for byte in content[at : at + size])
        changed = content[:at] + few + content[at + size :]
    elif kind == "zero":
        changed = content[:at] + bytes(min(size, len(content) - at)) + content[at + size :]
    elif kind == "insert":
        changed = content[:at] + rng.randbytes(size) + content[at:]
    elif kind == "lose":
        changed = content[:at] + content[at + size :]
    else:
        other = rng.randrange(len(content) or 1)
        changed = content[:at] + content[other : other + size] + content[at + size :]
    return f"{kind} {size} at {at}", changed
