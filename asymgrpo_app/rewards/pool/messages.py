"""Replies of workers: what is in them, how they travel, and what is believed of them.

A reply is a line of JSON: the side that trains never unpickles what comes from a worker. It carries the number of its
request, drawn at random, so that nothing else that a verifier wrote is taken for the reply to a later item.
"""

import json
import sys
from typing import Any

from asymgrpo_app.rewards.base import Status, Verdict

MAX_DETAIL_CHARS = 200
MAX_REPLY_BYTES = 65_536
NO_VERDICT = "verify returned"
"""What the detail begins with where a verifier returned something else than a verdict."""

_SHOWN_CHARS = 40

_MAX_TOLD_CHARS = 3 * MAX_DETAIL_CHARS  # the name of an exception and what the sandbox has to say come on top

Reply = dict[str, Any]
"""The reply to an item: the fields of a verdict, `reason` or `classes`. A failure has the fields of a verdict."""


def described(error: BaseException) -> str:
    """Type and message of an exception in one short, printable line."""
    message = one_line(str(error))
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def one_line(text: str, most: int = MAX_DETAIL_CHARS) -> str:
    """The text in one short line, with characters that cannot be printed as escapes."""
    if not text:
        return ""  # almost always
    text = " ".join(text[: 4 * most].split())
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return text if len(text) <= most else f"{text[:most]} ..."


def failure(detail: str, status: Status = Status.ERROR) -> Reply:
    """The reply to an item that was not judged."""
    return vars(Verdict(correct=False, status=status, detail=detail))


def checked_verdict(verdict: object) -> Verdict:
    """Return a verifier's verdict if it is consistent.

    Raises:
        TypeError: It is no verdict, or its fields have other types.
        ValueError: It is correct although no answer was judged.
    """
    if not isinstance(verdict, Verdict):
        raise TypeError(f"{NO_VERDICT} {_shown(verdict)}, not a Verdict")
    correct: Any = verdict.correct
    if not isinstance(correct, bool) and not _is_bool_of_numpy(correct):
        raise TypeError(f"{NO_VERDICT} a Verdict whose correct is {_shown(correct)}, not True or False")
    if verdict.status not in tuple(Status):
        raise TypeError(
            f"{NO_VERDICT} a Verdict whose status is {_shown(verdict.status)}, not one of {', '.join(Status)}"
        )
    status = Status(verdict.status)
    if correct and status is not Status.OK:
        raise ValueError(f"verify returned a correct verdict with the status {status}")
    return Verdict(correct=bool(correct), status=status, detail=one_line(str(verdict.detail)))


def is_no_verdict(verdict: Verdict) -> bool:
    """Whether a verdict stands for something else that a verifier returned."""
    return verdict.status is Status.ERROR and verdict.detail.startswith(f"TypeError: {NO_VERDICT} ")


def _is_bool_of_numpy(value: object) -> bool:
    """Whether a value is NumPy's own truth value, which a comparison of arrays gives; NumPy is not imported for it."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.bool_)


def _shown(value: object) -> str:
    """A value with its type, in a few words."""
    kind = type(value).__name__
    if value is None:
        return "None"
    if isinstance(value, bool | int | float | str):  # other types may print anything, and take any time
        return f"{ascii(value)[:_SHOWN_CHARS]} ({kind})"
    return f"an object of the type {kind}"


def encoded(number: str, reply: Reply, leave: bool) -> bytes:
    """A reply as it travels.

    Args:
        number: That of the request.
        reply: The reply; empty once a verifier is loaded.
        leave: Whether the worker should be replaced.
    """
    flag = "true" if leave else "false"
    return f'{{"number": "{number}", "leave": {flag}, "reply": {json.dumps(reply)}}}\n'.encode("ascii")


def decoded(message: bytes, number: str, kind: str, samples: int) -> tuple[Reply, bool] | None:
    """The reply in a message, and whether its worker should be replaced; None if it is no reply to the request.

    Args:
        message: All that came from the worker since the request.
        number: That of the request.
        kind: Kind of the request.
        samples: Number of completions in it.
    """
    line, _, surplus = message.partition(b"\n")
    try:
        fields = json.loads(line.decode("ascii"))
        if surplus or fields["number"] != number:
            return None
        return _believed(fields["reply"], kind, samples), bool(fields["leave"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _believed(reply: Reply, kind: str, samples: int) -> Reply:
    """The reply, rebuilt from fields that are what they should be.

    Raises:
        KeyError, TypeError, ValueError: It is no reply to a request of this kind.
    """
    if kind == "load" and reply == {}:
        return {}
    if kind == "check" and "reason" in reply:
        reason = reply["reason"]
        return {"reason": None if reason is None else one_line(_text(reason), _MAX_TOLD_CHARS)}
    if kind == "classes" and "classes" in reply:
        classes = reply["classes"]
        if len(classes) != samples or not all(c is None or (type(c) is int and 0 <= c < samples) for c in classes):
            raise ValueError("these are no classes of the completions")
        return {"classes": list(classes)}
    correct, status, detail = reply["correct"], Status(reply["status"]), _text(reply["detail"])
    if type(correct) is not bool or (correct and status is not Status.OK) or not (kind == "verify" or status.failed):
        raise ValueError("this is no verdict, or none was asked for")
    return {"correct": correct, "status": status, "detail": one_line(detail, _MAX_TOLD_CHARS)}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("this is no text")
    return value
