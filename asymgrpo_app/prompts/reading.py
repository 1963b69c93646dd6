"""How a row becomes a problem: its prompt, its reference, and the fields that the verifier finds."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts.base import BadRow
from asymgrpo_app.prompts.choices import ANSWERS, LETTER, TEXT
from asymgrpo_app.prompts.references import EXTRACTIONS, after_hashes, by_pattern, last_box
from asymgrpo_app.prompts.values import Row, as_text, field_value, is_text, shown_value, with_value

_PLACE = re.compile(r"\{\{([\w.-]+)\}\}|\{([A-Za-z_][\w.-]*)\}")
_LOOKED_FOR = {"box": r"\boxed{}", "hashes": "####"}


@dataclass(frozen=True)
class Reading:
    """How a row becomes a problem, where a field of the prompt and a field of the answer do not say it all.

    Fields are named as in `prompt_field`: dots reach into objects and lists.

    Args:
        json_fields: Fields whose text is JSON; each is replaced by what it says before anything else is read.
        prompt_format: The prompt as a text with fields of the row, e.g. `Make {target} from {nums}.`, in place of
            `prompt_field`. All other braces are left as they are, and `{{name}}` stands for `{name}`.
        choices: The field of the choices, which are put below the prompt with letters: a list of texts, or of objects
            with `text` and `label`, an object of the lists `text` and `label`, or an object of texts by their labels.
            Or a list of fields, one for each choice. The answer becomes the letter of the right one.
        choice_format: The line of a choice; `{letter}` and `{text}` are replaced.
        answer_is: The answer of a row with choices: a `letter` (or the label that the row gives the choice), an `index`
            from 0, or the `text` of the right choice.
        extract: Where the reference stands in the answer field, if that holds a whole solution: in the last `box`
            (LaTeX), after the last four `hashes` (GSM8K), or where `extract_pattern` finds it (`pattern`). Null: the
            field is the reference.
        extract_pattern: A regular expression, whose last match is taken: its group `answer`, else its first group, else
            all of it.
        fields: Further fields for the verifier, by the names that it looks for, e.g. `{numbers: nums}`.

    Raises:
        UserError: The settings make no sense.
    """

    json_fields: list[str] | None = None
    prompt_format: str | None = None
    choices: str | list[str] | None = None
    choice_format: str = "{letter}. {text}"
    answer_is: Literal["letter", "index", "text"] = "letter"
    extract: Literal["box", "hashes", "pattern"] | None = None
    extract_pattern: str | None = None
    fields: dict[str, str] | None = None

    def __post_init__(self) -> None:
        self._check_names()
        if self.prompt_format is not None and not any(name for _, name in _PLACE.findall(self.prompt_format)):
            raise UserError(
                f"reading.prompt_format must name a field of the rows in braces, as in {{question}}, got "
                f"{self.prompt_format!r}."
            )
        self._check_choices()
        self._check_extraction()

    def _check_names(self) -> None:
        named = {"json_fields": self.json_fields, "fields": None if self.fields is None else list(self.fields.values())}
        named["choices"] = [self.choices] if isinstance(self.choices, str) else self.choices
        for key, names in named.items():
            if names is not None and not (names and all(names)):
                raise UserError(f"reading.{key} must name fields of the rows, got {names}.")
        if self.fields and not all(self.fields):
            raise UserError(f"reading.fields must give each field a name, got {self.fields}.")
        if self.fields and "answer" in self.fields:
            raise UserError("reading.fields must leave answer to answer_field, which names the field of the answer.")

    def _check_choices(self) -> None:
        if self.answer_is not in ANSWERS:
            raise UserError(f"reading.answer_is must be one of {', '.join(ANSWERS)}, got {self.answer_is!r}.")
        if any(self.choice_format.count(place) != 1 for place in (LETTER, TEXT)):
            raise UserError(
                f"reading.choice_format must hold {LETTER} and {TEXT} once each, got {self.choice_format!r}."
            )
        if self.choices is None and (self.answer_is != "letter" or self.choice_format != Reading.choice_format):
            raise UserError("reading.answer_is and reading.choice_format are about choices: set reading.choices, too.")
        if isinstance(self.choices, list) and len(set(self.choices)) < len(self.choices):
            raise UserError(f"reading.choices names a field twice: {self.choices}.")

    def _check_extraction(self) -> None:
        if self.extract is not None and self.extract not in EXTRACTIONS:
            raise UserError(f"reading.extract must be one of {', '.join(EXTRACTIONS)} or null, got {self.extract!r}.")
        if (self.extract == "pattern") != (self.extract_pattern is not None):
            raise UserError(
                "reading.extract: pattern and reading.extract_pattern go together, got "
                f"{self.extract!r} and {self.extract_pattern!r}."
            )
        try:
            self._pattern  # noqa: B018 (compiled once)
        except (re.error, RecursionError, OverflowError) as error:
            raise UserError(
                f"reading.extract_pattern {self.extract_pattern!r} is not a regular expression: {error}."
            ) from error

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(self.extract_pattern or "")

    def decoded(self, row: Row) -> Row:
        """The row with what its `json_fields` say in place of their text.

        Raises:
            BadRow: One of them is no JSON.
        """
        for field in self.json_fields or ():
            text = field_value(row, field)
            if not isinstance(text, str):
                raise BadRow(f"{row.place}: {field!r} of reading.json_fields must be a text, not {shown_value(text)}.")
            try:
                value = parsed_json(text)
            except (ValueError, RecursionError) as error:
                raise BadRow(
                    f"{row.place}: {field!r} of reading.json_fields is no JSON ({str(error).lower()}), seen "
                    f"{shown_value(text)}."
                ) from error
            path = [field] if field in row.fields else field.split(".")
            row = replace(row, fields=with_value(row.fields, path, value))
        return row

    def formatted(self, row: Row) -> str:
        """The prompt that `prompt_format` makes of a row.

        Raises:
            BadRow: One of its fields is missing or empty.
        """

        def filled(place: re.Match[str]) -> str:
            return f"{{{place[1]}}}" if place[1] else _inserted(row, place[2])

        return _PLACE.sub(filled, self.prompt_format or "")

    def reference(self, row: Row, field: str, solution: str) -> str:
        """The reference in an answer field.

        Raises:
            BadRow: There is none.
        """
        match self.extract:
            case None:
                return solution
            case "box":
                found = last_box(solution)
            case "hashes":
                found = after_hashes(solution)
            case "pattern":
                found = by_pattern(self._pattern, solution)
        if found is None:
            looked_for = _LOOKED_FOR.get(self.extract, f"match of {self.extract_pattern!r}")
            raise BadRow(
                f"{row.place}: {field!r} has no {looked_for}, where reading.extract: {self.extract} looks for the "
                f"reference, but ends in {shown_value(solution[-40:])}."
            )
        return found

    def renamed(self, row: Row) -> Mapping[str, Any]:
        """The fields of a row, and those of `fields` by their other names.

        Raises:
            BadRow: One is missing.
        """
        return {**row.fields, **{name: field_value(row, field) for name, field in (self.fields or {}).items()}}


def parsed_json(text: str) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: It is none, or holds NaN or an infinity.
        RecursionError: It is nested too deeply.
    """
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON number")


def _inserted(row: Row, field: str) -> str:
    value = field_value(row, field)
    text = json.dumps(value, ensure_ascii=False, default=as_text) if isinstance(value, list | dict) else as_text(value)
    if not is_text(text):
        raise BadRow(f"{row.place}: {field!r} of reading.prompt_format has nothing to put in: {shown_value(value)}.")
    return text
