"""Errors with messages for users, and exit codes."""

import re
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the `asymgrpo` command."""

    OK = 0
    FAILURE = 1
    BAD_INPUT = 2
    TIME_LIMIT = 75  # EX_TEMPFAIL of sysexits.h: not done, try again
    HUNG_UP = 129
    INTERRUPTED = 130
    TERMINATED = 143


class UserError(Exception):
    """Bad input: one sentence that says what is wrong, the value seen and what to do. Exit code 2."""


class RunError(Exception):
    """A run that a guard stopped or that failed: one sentence that says why. Exit code 1."""


def at_least_1(key: str, value: int) -> int:
    """Check that the value of a config key is at least 1, and return it.

    Raises:
        UserError: It is below 1.
    """
    if value < 1:
        raise UserError(f"{key} must be at least 1, got {value}.")
    return value


def require(allowed: bool, key: str, value: object, allowed_values: str) -> None:
    """Refuse the value of a config key unless it is allowed.

    Raises:
        UserError: It is not; the message says what is.
    """
    if not allowed:
        raise UserError(f"{key} must be {allowed_values}, got {value}.")


def one_line(message: str) -> str:
    """A message as one line, without jsonargparse's hints to options that this command does not have."""
    text = " ".join(message.split())
    text = re.sub(r"\s*Note that the .*? argument.*$", "", text)
    return text if len(text) <= 500 else f"{text[:500]} ..."


def with_key(message: str, key: str | None) -> str:
    """The message with the key in front, unless it names one of that section."""
    if key is None or f"{key.partition('.')[0]}." in message:
        return message
    return f"{key}: {message}"


def user_error_in(error: BaseException) -> UserError | None:
    """The first `UserError` among an exception and its causes."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None
