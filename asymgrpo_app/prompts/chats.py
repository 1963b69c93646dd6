"""Chats as prompts: the last message of the user, and the turns before it."""

import re
from collections.abc import Mapping
from typing import Any

from asymgrpo_app.prompts.base import BadRow, Turn
from asymgrpo_app.prompts.values import Row, is_text, shown_value

_ROLES = ("system", "user", "assistant")
_CHAT_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*['"](?:role|content)['"]\s*:""")


def read_chat(row: Row, field: str, messages: list[Any]) -> tuple[tuple[Turn, ...], str]:
    """The turns before the last message of the user, and the text of that message.

    What the assistant says after it is the answer, and left out.

    Args:
        row: The row, for messages.
        field: Name of the field that holds the chat, likewise.
        messages: The chat, objects with a `role` and a `content`: a text, or a list of parts `{"type": "text", "text":
            ...}`.

    Raises:
        BadRow: It is no chat, or has no message of the user.
    """
    turns = [_turn(row, field, number, message) for number, message in enumerate(messages)]
    users = [number for number, turn in enumerate(turns) if turn.role == "user"]
    if not users:
        raise BadRow(f"{row.place}: the chat in {field!r} has no message of the role 'user': {shown_value(messages)}.")
    last = users[-1]
    if any(turn.role != "assistant" for turn in turns[last + 1 :]):
        raise BadRow(
            f"{row.place}: the chat in {field!r} goes on with another role than 'assistant' after the last message of "
            f"the role 'user': {shown_value(messages[last + 1 :])}."
        )
    return tuple(turns[:last]), turns[last].content


def refuse_chat_as_text(row: Row, field: str, text: str) -> None:
    """Refuse a chat that is stored as text.

    Raises:
        BadRow: It is; the message says how it is read.
    """
    if not (start := _CHAT_AS_TEXT.match(text)):
        return
    if "'" in start[0]:
        raise BadRow(
            f"{row.place}: {field!r} holds a chat as text in the notation of Python: write it as JSON, not "
            f"{shown_value(text)}."
        )
    raise BadRow(
        f"{row.place}: {field!r} holds a chat as JSON in a text: name the field in reading.json_fields, seen "
        f"{shown_value(text)}."
    )


def _turn(row: Row, field: str, number: int, message: object) -> Turn:
    named = f"{row.place}: message {number + 1} of the chat in {field!r}"
    if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
        raise BadRow(
            f"{named} must be an object with a 'role' (system, user or assistant) and a 'content', not "
            f"{shown_value(message)}."
        )
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_part(named, part) for part in content)
    if not is_text(content):
        raise BadRow(f"{named} has no text (valid Unicode, not empty) as 'content', but {shown_value(content)}.")
    return Turn(message["role"], content)


def _part(named: str, part: object) -> str:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type") in ("text", "input_text") else None
    if not isinstance(text, str):
        raise BadRow(f"{named} has a part that is no text, and only texts can be read: {shown_value(part)}.")
    return text
