"""Changes to bytes and to JSON values."""

import json
from collections.abc import Sequence
from random import Random
from typing import Any

_ODD: list[Any] = [None, True, False, 0, -1, 1.5, 2**31, 2**63, 2**70, -(2**70), 1e308, "", "5", "\x1b[2J", "a" * 5000]
_ODD += [[], {}, [[]] * 50, {"a": {"b": []}}, float("nan"), float("inf"), float("-inf"), "\ud800"]


def mutated(draw: Random, content: bytes, words: Sequence[bytes] = (b"\0", b"\xff", b"{", b'"')) -> bytes:
    """A content with one to eight changes, which may put words into it."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        place, length = draw.randrange(len(data) + 1), draw.choice((0, 1, 1, 2, 4, 8, 40))
        match draw.randrange(6):
            case 0 if data:
                data[place % len(data)] ^= 1 << draw.randrange(8)
            case 1:
                data[place : place + length] = draw.randbytes(length)
            case 2:
                del data[place : place + length]
            case 3:
                start = draw.randrange(len(data) + 1)
                data[place:place] = data[start : start + draw.choice((1, 8, 100, 1_000))]
            case _:
                data[place : place + length] = draw.choice(words)
    return bytes(data)


def mutated_value(draw: Random, value: Any) -> Any:
    """A JSON value with one place changed, left out, doubled or added."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        if (kind := draw.random()) < 0.1:
            return {name: entry for name, entry in value.items() if name != key}
        if kind < 0.15:
            return value | {f"{key}{draw.randrange(9)}": draw.choice(_ODD)}
        return value | {key: mutated_value(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.9:
        index = draw.randrange(len(value))
        if (kind := draw.random()) < 0.2:
            return value[:index] + value[index + 1 :]
        if kind < 0.4:
            return value * draw.choice([2, 3, 500])
        return [*value[:index], mutated_value(draw, value[index]), *value[index + 1 :]]
    return draw.choice(_ODD)


def mutated_json(draw: Random, value: Any) -> bytes:
    """A JSON value as text, with up to three places changed, and half of the time its bytes too."""
    for _ in range(draw.randrange(4)):
        value = mutated_value(draw, value)
    text = json.dumps(value).encode()
    return mutated(draw, text) if draw.random() < 0.5 else text
