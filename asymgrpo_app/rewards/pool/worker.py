"""The worker process: judges the items it is sent, one at a time.

Requests are pickled by the trusted side. Replies are JSON: the side that trains never unpickles what comes from here.
"""

import json
import os
import pickle
import resource
import signal
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from asymgrpo_app.rewards.answers import answer_classes
from asymgrpo_app.rewards.base import Status, Verdict, Verifier
from asymgrpo_app.runtime.stopping import end_with_parent

MAX_DETAIL_CHARS = 200

_MAX_VERIFIERS = 256


def described(error: BaseException) -> str:
    """Type and message of an exception in one short, printable line."""
    message = one_line(str(error))
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def one_line(text: str) -> str:
    """The text in one short line, with characters that cannot be printed as escapes."""
    text = " ".join(text[: 4 * MAX_DETAIL_CHARS].split())
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return text if len(text) <= MAX_DETAIL_CHARS else f"{text[:MAX_DETAIL_CHARS]} ..."


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


def verdict_here(verifier: Verifier, completion: str, row: Mapping[str, Any]) -> Verdict:
    """Judge one completion in this process; a verifier that fails gives a verdict with the status `error`."""
    try:
        return checked_verdict(verifier.verify(completion, row))
    except (Exception, SystemExit) as error:
        return Verdict(correct=False, status=Status.ERROR, detail=described(error))


def reason_here(verifier: Verifier, row: Mapping[str, Any]) -> str | None:
    """The reason why a verifier cannot judge a row, from a check in this process; None if it can."""
    try:
        verifier.check_row(row)
    except ValueError as error:
        return one_line(str(error)) or type(error).__name__
    except (Exception, SystemExit) as error:
        return f"the verifier failed on it ({described(error)})"
    return None


def answer_classes_here(
    verifier: Verifier, completions: Sequence[str], row: Mapping[str, Any]
) -> list[int | None] | None:
    """Classes of equal answers among the completions of one problem; None if the verifier does not define them."""
    try:
        answers = [verifier.find_answer(completion, row) for completion in completions]
    except NotImplementedError:
        return None
    return answer_classes(answers, verifier.equal_answers)


def confine(launcher: int, memory_bytes: int) -> None:
    """Limit the resources of this process, and let it end with the launcher that forked it."""
    os.setpgid(0, 0)  # so that what a verifier starts can be ended with it
    end_with_parent(launcher)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.close(nothing)


def serve(connection: Connection, memory_bytes: int) -> None:
    """Answer requests until the other side closes the connection or this process should be replaced."""
    verifiers: dict[int, Verifier] = {}
    connection.send_bytes(b"{}")  # ready
    leave = False
    while not leave:
        try:
            kind, token, payload = pickle.loads(connection.recv_bytes())  # noqa: S301 (from the trusted side)
        except EOFError:
            return
        # The answer is a line and a flag, whatever the verifier raised, even what is meant to end a process.
        try:
            reply = _reply(kind, verifiers, token, payload)
        except BaseException as error:
            reply = {"error": described(error)}
            leave = isinstance(error, MemoryError)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm that a library left behind
        # Libraries keep what they computed; a worker that has become large makes room for a fresh one.
        if kind != "load":  # which is followed by an item
            leave = leave or len(verifiers) > _MAX_VERIFIERS or _peak_bytes() > memory_bytes / 2
        connection.send_bytes(json.dumps(reply | {"leave": leave}).encode("ascii"))


def _reply(kind: str, verifiers: dict[int, Verifier], token: int, payload: bytes) -> dict[str, Any]:
    if kind == "load":
        verifiers[token] = pickle.loads(payload)  # noqa: S301 (from the trusted side)
        verifiers[token].prepare()
        return {}
    verifier = verifiers[token]
    completion, row = pickle.loads(payload)  # noqa: S301 (from the trusted side)
    if kind == "check":
        try:
            verifier.check_row(row)
        except ValueError as error:
            return {"reason": one_line(str(error)) or type(error).__name__}
        return {"reason": None}
    if kind == "classes":
        return {"classes": answer_classes_here(verifier, completion, row)}
    verdict = checked_verdict(verifier.verify(completion, row))
    return {"correct": verdict.correct, "status": verdict.status.value, "detail": verdict.detail}


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
