"""Prompts made of rows: what is read of each, and the order of the rows."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts.base import BadRow, Prompt, PromptSource, Turn
from asymgrpo_app.prompts.chats import read_chat, refuse_chat_as_text
from asymgrpo_app.prompts.choices import Choices, read_choices, refuse_left_out, refuse_unknown_letters
from asymgrpo_app.prompts.order import shuffled
from asymgrpo_app.prompts.reading import Reading
from asymgrpo_app.prompts.references import unread_solution
from asymgrpo_app.prompts.values import Row, as_text, field_value, is_finite, is_text, only_element, shown_value
from asymgrpo_app.rewards import ExactMatch, MultipleChoice
from asymgrpo_app.rewards.base import Verifier
from asymgrpo_app.rewards.functions import checked_verifier

__all__ = ["Row", "RowSource", "is_finite", "shown_value"]

_DEFAULT_PROMPT_FIELD = "prompt"


class RowSource(PromptSource):
    """Prompts from a table. Rows are read and checked when they are asked for, one at a time, in any order.

    The verifier finds all fields of the row, and the answer as a string under `answer`.

    Args:
        size: Number of rows.
        prompt_field: The field of the problem; for a field within a field, names joined by dots, e.g. `extra.question`.
            Its value is a string that is not empty, or a chat, whose last message of the role `user` is the problem.
        answer_field: The field of the right answer, named likewise; a string that is not empty, a number or a date.
            None: the verifier reads other fields.
        verifier: The verifier that judges the completions; exact match if left out.
        reading: How a row becomes a problem, where these two fields do not say it all.

    Raises:
        UserError: There is no row, a field has no name, settings exclude each other, or the verifier is none.
    """

    def __init__(
        self,
        size: int,
        prompt_field: str,
        answer_field: str | None,
        verifier: Verifier | None,
        reading: Reading | None = None,
    ) -> None:
        for argument, field in (("prompt_field", prompt_field), ("answer_field", answer_field)):
            if field is not None and not field:
                raise UserError(f"{argument} is empty: name a field of the rows.")
        self.reading = reading or Reading()
        _check_together(self.reading, prompt_field, answer_field)
        if not size:
            raise UserError(f"{self} holds no prompts: there is no row in it.")
        self.size: int = size
        self.prompt_field = prompt_field
        self.answer_field = answer_field
        self.verifier = ExactMatch() if verifier is None else checked_verifier(verifier, type(self).__name__)

    @abstractmethod
    def row(self, index: int) -> Row:
        """The row `index`, from 0.

        Raises:
            BadRow: The row cannot be read.
        """

    def at(self, position: int, seed: int) -> Prompt:
        """The prompt at `position`: every epoch is one pass over all rows in an order drawn from (seed, epoch)."""
        epoch, index = divmod(position, self.size)
        return self.nth(shuffled(index, self.size, seed, epoch))

    def nth(self, index: int) -> Prompt:
        """The prompt of row `index`, from 0, in the order of the table."""
        row = self.reading.decoded(self.row(index))
        turns, text = self._chat(row)
        choices = None if self.reading.choices is None else read_choices(row, self.reading.choices)
        if choices is not None:
            text = f"{text}\n{choices.lines(self.reading.choice_format)}"
        self._check_choices(row, choices, text)
        fields = dict(self.reading.renamed(row))
        if self.answer_field is not None:
            fields["answer"] = self._answer(row, self.answer_field, choices)
        return Prompt(row.uid, text, fields, self.verifier, row.place, turns)

    def fixed(self, limit: int | None) -> Sequence[Prompt]:
        """The first `limit` prompts in the order of the table; all of them for None or if there are fewer.

        Raises:
            UserError: One of the rows cannot be used.
        """
        count = self.size if limit is None else min(limit, self.size)
        return [self.nth(index) for index in range(count)]

    def _chat(self, row: Row) -> tuple[tuple[Turn, ...], str]:
        """The turns before the problem, and its text."""
        if self.reading.prompt_format is not None:
            return (), self.reading.formatted(row)
        value = field_value(row, self.prompt_field)
        if isinstance(value, list) and value and all(isinstance(message, Mapping) for message in value):
            return read_chat(row, self.prompt_field, value)
        if not is_text(value):
            raise BadRow(
                f"{row.place}: {self.prompt_field!r} must be a string (valid Unicode, not empty) or a chat (a list of "
                f"messages with 'role' and 'content'), not {shown_value(value)}."
            )
        refuse_chat_as_text(row, self.prompt_field, value)
        return (), value

    def _check_choices(self, row: Row, choices: Choices | None, text: str) -> None:
        if isinstance(self.verifier, MultipleChoice):
            if choices is None:
                refuse_left_out(row, text)
            else:
                refuse_unknown_letters(row, choices, self.verifier)

    def _answer(self, row: Row, name: str, choices: Choices | None) -> str:
        """The reference: what the answer field holds, or the part of it or the letter that is asked for."""
        value = only_element(field_value(row, name))
        text = as_text(value)
        if text is None:
            raise BadRow(
                f"{row.place}: {name!r} must be a string (valid Unicode, not empty), a number or a date, not "
                f"{shown_value(value)}."
            )
        reference = self.reading.reference(row, name, text)
        if choices is None:
            self._check_reference(row, name, reference)
            return reference
        kind = self.reading.answer_is
        letter = choices.letter(value if self.reading.extract is None else reference, kind)
        if letter is None:
            known = ", ".join(choices.known(kind))
            raise BadRow(
                f"{row.place}: {name!r} must be the {kind} of one of the choices (reading.answer_is), which are "
                f"{shown_value(known)}, not {shown_value(reference)}."
            )
        return letter

    def _check_reference(self, row: Row, name: str, reference: str) -> None:
        """Refuse a whole solution where the verifier compares with an answer."""
        if (kind := unread_solution(reference, self.verifier)) is not None:
            raise BadRow(
                f"{row.place}: {name!r} holds a whole solution, which no answer equals for "
                f"{type(self.verifier).__name__}: set reading.extract: {kind}, seen the end "
                f"{shown_value(reference[-40:])}."
            )


def _check_together(reading: Reading, prompt_field: str, answer_field: str | None) -> None:
    if reading.prompt_format is not None and prompt_field != _DEFAULT_PROMPT_FIELD:
        raise UserError(
            f"reading.prompt_format takes the place of prompt_field: leave out one of them, got prompt_field "
            f"{prompt_field!r}."
        )
    if answer_field is None and (reading.extract is not None or reading.answer_is != Reading.answer_is):
        raise UserError("answer_field is null, and reading.extract and reading.answer_is are about the answer.")
