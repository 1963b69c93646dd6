"""Multiple choice: the choices of a row as lines below the prompt, and its answer as their letter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from asymgrpo_app.prompts.base import BadRow
from asymgrpo_app.prompts.values import Row, as_text, field_value, shown_value
from asymgrpo_app.rewards.choice import MultipleChoice

ANSWERS = ("letter", "index", "text")
LETTER, TEXT = "{letter}", "{text}"

_NAMES = ("choice", "option", "ending")


@dataclass(frozen=True)
class Choices:
    """The choices of a row.

    Attributes:
        texts: Two to 26; their letters are A, B, C, ...
        labels: What the row itself calls each, e.g. `1`; None: the letters.
    """

    texts: Sequence[str]
    labels: Sequence[str] | None = None

    def lines(self, line: str) -> str:
        """One line for each choice, in which `{letter}` and `{text}` are replaced."""
        parts = [part.split(TEXT) for part in line.split(LETTER)]  # once each, so no text is looked at again
        return "\n".join(
            letter.join(text.join(part) for part in parts)
            for letter, text in zip(ascii_uppercase, self.texts, strict=False)
        )

    def known(self, kind: str) -> list[str]:
        """What an answer may be, by the place of the choice.

        Args:
            kind: One of `ANSWERS`.
        """
        match kind:
            case "index":
                return [str(place) for place in range(len(self.texts))]
            case "text":
                return [text.strip() for text in self.texts]
        return [label.strip() for label in self.labels or ascii_uppercase[: len(self.texts)]]

    def letter(self, answer: object, kind: str) -> str | None:
        """The letter of the right choice; None if the answer names none, or several of the same text.

        Args:
            answer: The row's answer.
            kind: One of `ANSWERS`.
        """
        text = (as_text(answer) or "").strip()
        if kind == "index" and isinstance(answer, float):  # a column of numbers some of which are missing
            text = text.removesuffix(".0")
        known = self.known(kind)
        if kind == "letter" and text not in known:
            text = text.strip("(). ").upper()
        return ascii_uppercase[known.index(text)] if known.count(text) == 1 else None


def read_choices(row: Row, field: str | Sequence[str]) -> Choices:
    """The choices of a row.

    Args:
        row: The row.
        field: The field that holds them: a list of texts, or of objects with `text` (and `label`), an object of lists
            `text` and `label`, or an object of texts by their labels. Or a list of fields, one for each choice.

    Raises:
        BadRow: They are something else, or not two to 26.
    """
    shown = field if isinstance(field, str) else ", ".join(field)
    value = field_value(row, field) if isinstance(field, str) else {name: field_value(row, name) for name in field}
    texts, labels = _parts(value)
    found = [as_text(text) for text in texts]
    written = [text for text in found if text is not None]
    if not 2 <= len(written) <= len(ascii_uppercase) or len(written) < len(found):
        raise BadRow(
            f"{row.place}: reading.choices {shown!r} must hold 2 to {len(ascii_uppercase)} texts or numbers, none of "
            f"them empty, not {shown_value(value)}."
        )
    if labels is None:
        return Choices(written)
    names = [as_text(label) or "" for label in labels]
    if len(names) != len(written) or len(set(names)) < len(names):
        raise BadRow(f"{row.place}: the labels of the choices in {shown!r} are not one for each: {shown_value(value)}.")
    return Choices(written, names)


def _parts(value: Any) -> tuple[Sequence[object], Sequence[object] | None]:
    """Texts and labels, whatever they are."""
    if isinstance(value, Mapping):
        if isinstance(value.get("text"), list):
            labels = value.get("label")
            return value["text"], labels if isinstance(labels, list) else None
        there = {label: text for label, text in value.items() if text is not None}  # a column has all names of its rows
        return list(there.values()), list(there)
    if isinstance(value, list) and value and all(isinstance(choice, Mapping) for choice in value):
        labelled = all("label" in choice for choice in value)
        return [choice.get("text") for choice in value], [c["label"] for c in value] if labelled else None
    return (value, None) if isinstance(value, list) else ((), None)


def refuse_unknown_letters(row: Row, choices: Choices, verifier: MultipleChoice) -> None:
    """Refuse a row with a choice whose letter the verifier does not know.

    Raises:
        BadRow: There is one.
    """
    needed = ascii_uppercase[: len(choices.texts)]
    if not set(needed) <= set(verifier.choices):
        raise BadRow(
            f"{row.place}: there are {len(needed)} choices, and MultipleChoice knows the letters {verifier.choices}: "
            f"set its choices: {needed}, or as many as the longest row needs."
        )


def refuse_left_out(row: Row, prompt: str) -> None:
    """Refuse a row of multiple choice whose choices are in a field, and not in the prompt.

    Raises:
        BadRow: They are.
    """
    for name, value in _candidates(row.fields).items():
        texts = [" ".join(text.split()) for choice in _parts(value)[0] if (text := as_text(choice))]
        seen = " ".join(prompt.split())
        if len(texts) >= 2 and sum(text in seen for text in texts) * 2 < len(texts):
            raise BadRow(
                f"{row.place}: the choices in {name!r} do not stand in the prompt, so MultipleChoice asks for a letter "
                f"that means nothing: set reading.choices: {name}."
            )


def _candidates(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What may be choices, by their name in a config."""
    found = {name: value for name, value in fields.items() if any(part in name.lower() for part in _NAMES)}
    columns = [letter for letter in ascii_uppercase if letter in fields]
    if columns[:2] == ["A", "B"]:
        found[f"[{', '.join(columns)}]"] = {letter: fields[letter] for letter in columns}
    return found
