"""The worker process: judges the items it is sent, one at a time.

Requests are pickled by the trusted side. Replies are JSON: the side that trains never unpickles what comes from here.
"""

import json
import os
import pickle
import resource
import signal
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from asymgrpo_app.rewards.answers import answer_classes
from asymgrpo_app.rewards.base import Status, Verdict, Verifier
from asymgrpo_app.runtime.stopping import end_with_parent

MAX_DETAIL_CHARS = 200

_MAX_VERIFIERS = 256

Reply = dict[str, Any]
"""The reply to an item: the fields of a verdict, `reason` or `classes`. A failure has the fields of a verdict."""


def described(error: BaseException) -> str:
    """Type and message of an exception in one short, printable line."""
    message = one_line(str(error))
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def one_line(text: str) -> str:
    """The text in one short line, with characters that cannot be printed as escapes."""
    text = " ".join(text[: 4 * MAX_DETAIL_CHARS].split())
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return text if len(text) <= MAX_DETAIL_CHARS else f"{text[:MAX_DETAIL_CHARS]} ..."


def failure(detail: str, status: Status = Status.ERROR) -> Reply:
    """The reply to an item that was not judged."""
    return vars(Verdict(correct=False, status=status, detail=detail))


def reply_to(kind: str, verifier: Verifier, given: Any, row: Mapping[str, Any]) -> Reply:
    """Judge an item.

    Args:
        kind: `verify` (a completion), `check` (only the row) or `classes` (of equal answers among the completions of
            one problem).
        verifier: The judge.
        given: The completion or completions.
        row: The row they answer.
    """
    if kind == "check":
        try:
            verifier.check_row(row)
        except ValueError as error:
            return {"reason": one_line(str(error)) or type(error).__name__}
        return {"reason": None}
    if kind == "classes":
        answers = [verifier.find_answer(completion, row) for completion in given]
        return {"classes": answer_classes(answers, verifier.equal_answers)}
    return vars(checked_verdict(verifier.verify(given, row)))


def checked_verdict(verdict: object) -> Verdict:
    """Return a verifier's verdict if it is consistent.

    Raises:
        TypeError: It is no verdict, or its fields have other types.
        ValueError: It is correct although no answer was judged.
    """
    if not isinstance(verdict, Verdict):
        raise TypeError(f"verify returned {type(verdict).__name__}, not a Verdict")
    if not isinstance(verdict.correct, bool):
        raise TypeError(f"Verdict.correct must be True or False, got {type(verdict.correct).__name__}")
    status = Status(verdict.status)
    if verdict.correct and status is not Status.OK:
        raise ValueError(f"verify returned a correct verdict with the status {status}")
    return Verdict(correct=verdict.correct, status=status, detail=one_line(str(verdict.detail)))


def confine(launcher: int, memory_bytes: int) -> None:
    """Limit the resources of this process, and let it end with the launcher that forked it."""
    os.setpgid(0, 0)  # so that what a verifier starts can be ended with it
    end_with_parent(launcher)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(1, 2)  # what a verifier prints is discarded: the launcher's standard output is the null device


def serve(connection: Connection, memory_bytes: int) -> None:
    """Answer requests until the other side closes the connection or this process should be replaced."""
    verifiers: dict[bytes, Verifier] = {}
    leave = False
    while not leave:
        try:
            kind, key, payload = pickle.loads(connection.recv_bytes())  # noqa: S301 (from the trusted side)
        except EOFError:
            return
        reply: Reply = {}
        # The answer is a line and a flag, whatever the verifier raised, even what is meant to end a process.
        try:
            content = pickle.loads(payload)  # noqa: S301 (from the trusted side)
            if kind == "load":
                verifiers[key] = content
                content.prepare()
            else:
                reply = reply_to(kind, verifiers[key], *content)
        except BaseException as error:
            reply = failure(described(error))
            leave = isinstance(error, MemoryError)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm that a library left behind
        # Libraries keep what they computed; a worker that has become large makes room for a fresh one.
        if kind != "load":  # which is followed by an item
            peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            leave = leave or len(verifiers) > _MAX_VERIFIERS or peak_bytes > memory_bytes / 2
        connection.send_bytes(json.dumps(reply | {"leave": leave}).encode("ascii"))
