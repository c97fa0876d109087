# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Mutations of JSON: of values and names in its tables, and of the bytes that spell it."""

import copy
import json
import random
from typing import Any


# What no field expects, and what lies at the limits of those that do.
VALUES: list[Any] = [None, True, False, 0, 1, -1, 2, 3, 32, 2**31, 2**53, 2**63, -(2**63), 10**9, 10**30, 10**400]
VALUES += [0.0, -0.5, 1.0, 2.5, 1e308, 1e-320, "", "x", "a b", "..", "../x", "/etc/passwd", "\0", "\x1b[31m", "\u202e"]
VALUES += ["\udce9", "é", "1", "NaN", "x" * 3000, [], [1], [[]], ["x"], {}, {"": 1}, {"a": {"b": [None]}}]

NAMES = ["to_dict", "model_type", "x", "__class__", "dtype", "cache_dir", "layer_specs", ""]

SPLICES = [b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\0", b"\xff", b"\xef\xbb\xbf", b"NaN", b"-Infinity"]
SPLICES += [b"1e999"]
SPLICES += [b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b'"\\ud800"', b"null", b" " * 500]


def mutated(table: dict[str, Any], generator: random.Random) -> bytes:
    """A copy of a table with some changes in it, spelled; sometimes the spelling is changed, too."""
    changed = copy.deepcopy(table)
    for _ in range(generator.choice([0, 1, 1, 1, 2, 3])):
        _mutate(changed, generator)
    data = json.dumps(changed).encode()
    if changed and generator.random() < 0.05:
        name = generator.choice(list(changed))
        data = data[:-1] + b", " + json.dumps(name).encode() + b": " + json.dumps(_value(generator)).encode() + b"}"
    return _spoiled(data, generator) if generator.random() < 0.2 else data


def assert_unambiguous(data: bytes) -> dict[str, Any]:
    """The table that was accepted, in which nothing may be there twice."""

    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({name for name, _ in pairs}) == len(pairs), "a name that is there twice was accepted"
        return dict(pairs)

    table = json.loads(data, object_pairs_hook=check)
    assert isinstance(table, dict)
    return table


def _mutate(table: dict[str, Any], generator: random.Random) -> None:
    """Changes a place anywhere below a table; near its top more often, where most of what is read stands."""
    place: Any = table
    while True:
        keys: list[Any] = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = generator.choice(keys)
        below = place[key]
        if not isinstance(below, (dict, list)) or not below or generator.random() < 0.2:
            break
        place = below
    what = generator.randrange(6)
    if what == 0:
        del place[key]
    elif what == 1 and isinstance(place, dict):
        place[str(generator.choice([*NAMES, *keys]))] = place.pop(key)
    elif what == 2 and isinstance(place, dict):
        place[generator.choice(NAMES)] = _value(generator)
    elif what == 3:
        other = generator.choice(keys)
        place[key], place[other] = place[other], place[key]
    elif what == 4 and isinstance(place[key], int):
        place[key] += generator.choice([-1, 1, 1000, -1000])
    elif what == 4 and isinstance(place[key], str):
        place[key] = generator.choice(["../{}", "/{}", "{}/", "\x1b{}", "{}\0", "{}{}"]).replace("{}", place[key])
    else:
        place[key] = _value(generator)


def _value(generator: random.Random) -> Any:
    return copy.deepcopy(generator.choice(VALUES))


def _spoiled(data: bytes, generator: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(generator.choice([1, 1, 2, 5])):
        at = generator.randint(0, len(changed))
        what = generator.randrange(4)
        if what == 0:
            changed[at:at] = generator.choice(SPLICES)
        elif what == 1:
            del changed[at : at + generator.randint(1, 40)]
        elif what == 2 and at < len(changed):
            changed[at] = generator.getrandbits(8)
        else:  # a part of it twice, so that names are
            changed[at:at] = changed[max(at - generator.randint(1, 60), 0) : at]
    return bytes(changed)
