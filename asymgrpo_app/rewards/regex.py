"""The verifier for answers that a regular expression finds."""

import re
from collections.abc import Mapping
from typing import Any

from asymgrpo_app.errors import UserError
from asymgrpo_app.rewards.exact import TextMatch
from asymgrpo_app.rewards.numbers import last_match


class RegexMatch(TextMatch):
    r"""Accepts a completion in which a group of the pattern's last match equals `row["answer"]`.

    White space around both is ignored. Without a match, or if the group is empty or took no part in the match, the
    status is `no_answer`.

    Args:
        pattern: A regular expression of Python, e.g. `<answer>(.*?)</answer>`; it is searched for from the left, and
            `.` does not match line breaks unless the pattern says `(?s)`.
        group: Number or name of the group that holds the answer; 0 is the whole match.
        case_sensitive: Whether the pattern and the comparison tell capital from small letters.
    """

    def __init__(self, pattern: str, group: int | str = 1, case_sensitive: bool = True) -> None:
        self.pattern = pattern
        self.group = group
        self.case_sensitive = case_sensitive
        try:
            compiled = self._compiled()
        except (re.error, RecursionError, OverflowError) as error:
            raise UserError(f"pattern {pattern!r} is not a regular expression: {error}") from error
        known = group in compiled.groupindex if isinstance(group, str) else 0 <= group <= compiled.groups
        if not known:
            raise UserError(f"pattern {pattern!r} has no group {group!r}")

    def find_answer(self, completion: str, row: Mapping[str, Any]) -> str | None:
        last = last_match(self._compiled(), completion)
        return self.normalized(last[self.group]) if last else None

    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern, 0 if self.case_sensitive else re.IGNORECASE)
