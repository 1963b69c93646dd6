"""What `reading` makes of rows: chats, choices, references in solutions, prompts of several fields, JSON in texts."""

import datetime
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from asymgrpo_app.checkpoints.config_changes import config_changes
from asymgrpo_app.prompts import JsonLines, Prompt, Reading
from asymgrpo_app.prompts.base import Turn
from asymgrpo_app.prompts.references import after_hashes, last_box, solution_kind
from asymgrpo_app.prompts.templates import ChatTemplate, PlainTemplate
from asymgrpo_app.prompts.values import as_text
from asymgrpo_app.rewards import (
    CountdownVerifier,
    ExactMatch,
    MathVerifier,
    MultipleChoice,
    NumericMatch,
    RegexMatch,
)

Refusal = Callable[..., str]
Read = Callable[..., Prompt]
Refused = Callable[..., str]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """The prompt of one row; further arguments are those of `JsonLines`, or of `Reading`."""
    monkeypatch.chdir(tmp_path)

    def prompt_of(row: dict[str, Any], **arguments: Any) -> Prompt:
        own = {name: arguments.pop(name) for name in list(arguments) if name in Reading.__dataclass_fields__}
        Path("rows.jsonl").write_text(json.dumps(row) + "\n")
        return JsonLines("rows.jsonl", **arguments, reading=Reading(**own)).nth(0)

    return prompt_of


@pytest.fixture
def refused(read: Read, refusal: Refusal) -> Refused:
    """The sentence that refuses a row, after its place."""

    def sentence(row: dict[str, Any], **arguments: Any) -> str:
        message = refusal(read, row, **arguments)
        assert message.startswith("rows.jsonl, line 1: ")
        return message.removeprefix("rows.jsonl, line 1: ")

    return sentence


def chat(*turns: str) -> list[dict[str, Any]]:
    """Messages from texts such as `user: 1 + 1`."""
    return [dict(zip(("role", "content"), turn.split(": ", 1), strict=True)) for turn in turns]


class TestChats:
    def test_the_last_message_of_the_user_is_the_problem(self, read: Read) -> None:
        messages = chat("system: Be brief.", "user: 1 + 1", "assistant: 2", "user: 2 + 2")
        prompt = read({"prompt": messages, "answer": "4"})
        assert prompt.text == "2 + 2"
        assert prompt.turns == (Turn("system", "Be brief."), Turn("user", "1 + 1"), Turn("assistant", "2"))
        assert prompt.row == {"prompt": messages, "answer": "4"}

    def test_one_message_has_no_turns_before_it(self, read: Read) -> None:
        assert read({"prompt": chat("user: 2 + 2"), "answer": "4"}).turns == ()

    def test_what_the_assistant_says_at_the_end_is_no_part_of_the_prompt(self, read: Read) -> None:
        row = {"messages": chat("user: 2 + 2", "assistant: It is \\boxed{4}.")}
        prompt = read(row, prompt_field="messages", answer_field="messages.-1.content", extract="box")
        assert (prompt.text, prompt.turns, prompt.row["answer"]) == ("2 + 2", (), "4")

    def test_parts_of_a_text_are_joined(self, read: Read) -> None:
        parts = [{"type": "text", "text": "2 +"}, {"type": "text", "text": " 2", "image": None}]
        assert read({"prompt": [{"role": "user", "content": parts}], "answer": "4"}).text == "2 + 2"

    @pytest.mark.parametrize(
        ("messages", "expected"),
        [
            (chat("assistant: a"), "the chat in 'prompt' has no message of the role 'user': "),
            (chat("user: a", "system: b"), "the chat in 'prompt' goes on with another role than 'assistant' after the"),
            (chat("user: a", "tool: b"), "message 2 of the chat in 'prompt' must be an object with a 'role' (system, "),
            ([{"from": "human", "value": "a"}], "message 1 of the chat in 'prompt' must be an object with a 'role' "),
            (
                [{"role": "user"}],
                "message 1 of the chat in 'prompt' has no text (valid Unicode, not empty) as 'content'",
            ),
            ([{"role": "user", "content": " "}], "message 1 of the chat in 'prompt' has no text"),
            (
                [{"role": "user", "content": [{"type": "image", "image": "x"}]}],
                "message 1 of the chat in 'prompt' has a part that is no text, and only texts can be read: {",
            ),
        ],
    )
    def test_what_is_no_chat_is_refused(self, refused: Refused, messages: Any, expected: str) -> None:
        assert refused({"prompt": messages, "answer": "4"}).startswith(expected)

    def test_a_chat_as_text_is_refused_and_read_if_asked_for(self, read: Read, refused: Refused) -> None:
        row = {"prompt": json.dumps(chat("system: s", "user: 2 + 2")), "answer": "4"}
        assert refused(row) == (
            "'prompt' holds a chat as JSON in a text: name the field in reading.json_fields, seen "
            '\'[{"role": "system", "content": "s"}, {"role": "user", "c....'
        )
        prompt = read(row, json_fields=["prompt"])
        assert (prompt.text, prompt.turns) == ("2 + 2", (Turn("system", "s"),))

    def test_a_chat_in_the_notation_of_python_is_refused(self, refused: Refused) -> None:
        row = {"prompt": str(chat("user: 2 + 2")), "answer": "4"}
        assert refused(row).startswith(
            "'prompt' holds a chat as text in the notation of Python: write it as JSON, not "
        )

    def test_a_text_in_brackets_is_a_text(self, read: Read) -> None:
        assert read({"prompt": '[{"a": 1}]', "answer": "4"}).text == '[{"a": 1}]'


class TestTemplates:
    TURNS = (Turn("system", "Be brief."), Turn("user", "1 + 1"), Turn("assistant", "2"))

    @pytest.fixture
    def tokenizer(self) -> Any:
        class Tokenizer:
            def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
                return "".join(f"<{message['role']}>{message['content']}" for message in messages)

        return Tokenizer()

    def test_a_chat_template_gets_the_turns_and_the_problem_in_its_format(self, tokenizer: Any) -> None:
        template = ChatTemplate(format="{prompt}?")
        rendered = template.render_chat(self.TURNS, "2 + 2", tokenizer)
        assert rendered == "<system>Be brief.<user>1 + 1<assistant>2<user>2 + 2?"
        assert ChatTemplate(system="S").render_chat(self.TURNS[1:], "2", tokenizer).startswith("<system>S<user>1 + 1<")

    def test_two_system_messages_are_refused(self, tokenizer: Any) -> None:
        with pytest.raises(ValueError, match=r"it has a system message, and data.template has another"):
            ChatTemplate(system="S").render_chat(self.TURNS, "2 + 2", tokenizer)

    def test_plain_text_has_no_place_for_turns(self, tokenizer: Any) -> None:
        with pytest.raises(ValueError, match=r"PlainTemplate has no place for the turns before .*: use ChatTemplate"):
            PlainTemplate().render_chat(self.TURNS, "2 + 2", tokenizer)
        assert PlainTemplate("{prompt}!").render_chat((), "2 + 2", tokenizer) == "2 + 2!"


class TestReferences:
    @pytest.mark.parametrize(
        ("solution", "expected"),
        [
            (r"So $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
            (r"First $\boxed{1}$. After that it is $\boxed{2}$", "2"),
            (r"$x = \boxed 5$.", "5"),
            (r"It is $\boxed 5.$", "5"),
            (r"\(\boxed 12 \) is it", "12"),
            (r"\boxed{1}, but then \boxed 3", "3"),
            (r"\boxed 1, but then \boxed{3}", "3"),
            (r"\fbox{7}", "7"),
            (r"\boxed{7", None),
            (r"\boxed", None),
            (r"\boxedtext{7}", None),
            ("7", None),
            ("", None),
        ],
    )
    def test_the_last_box(self, solution: str, expected: str | None) -> None:
        assert last_box(solution) == expected

    @pytest.mark.parametrize(
        ("solution", "expected"),
        [
            ("It is 7.\n#### 72", "72"),
            ("It is 7.\n#### 1,234,567.50\n", "1234567.50"),
            ("####72", "72"),
            ("#### -1,000", "-1000"),
            ("#### 1, 2", "1, 2"),
            ("#### 12,34", "12,34"),
            ("#### 1\n#### 2", "2"),
            ("#### ", None),
            ("### 2", None),
        ],
    )
    def test_after_hashes(self, solution: str, expected: str | None) -> None:
        assert after_hashes(solution) == expected

    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            (r"<answer>(.*?)</answer>", "2"),
            (r"(?s)<answer>(?P<other>.*?)</answer>.*?(?P<answer>end)", "end"),
            (r"\d", "2"),
        ],
    )
    def test_the_last_match_of_a_pattern(self, read: Read, pattern: str, expected: str) -> None:
        row = {"prompt": "p", "answer": "<answer>1</answer> <answer> 2 </answer> the end"}
        assert read(row, extract="pattern", extract_pattern=pattern).row["answer"] == expected

    def test_a_path_into_json(self, read: Read) -> None:
        row = {"prompt": "p", "info": {"check": '{"truth": [{"value": "7"}]}'}}
        prompt = read(row, answer_field="info.check.truth.0.value", json_fields=["info.check"])
        assert prompt.row == {"prompt": "p", "info": {"check": {"truth": [{"value": "7"}]}}, "answer": "7"}

    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({"extract": "box"}, "'answer' has no \\boxed{}, where reading.extract: box looks for the reference, but "),
            (
                {"extract": "hashes"},
                "'answer' has no ####, where reading.extract: hashes looks for the reference, but ",
            ),
            (
                {"extract": "pattern", "extract_pattern": "(x)"},
                "'answer' has no match of '(x)', where reading.extract: ",
            ),
        ],
    )
    def test_a_solution_without_a_reference_is_refused(
        self, refused: Refused, settings: dict[str, str], expected: str
    ) -> None:
        message = refused({"prompt": "p", "answer": "It is 7."}, **settings)
        assert message.startswith(expected)
        assert message.endswith("ends in 'It is 7.'.")

    GSM8K = "She has 2 + 2 = 4.\n#### 4"
    MATH = r"The sum is $\boxed{4}$."

    @pytest.mark.parametrize(
        "verifier", [ExactMatch(), MathVerifier(), NumericMatch(), MultipleChoice(), RegexMatch("(x)")], ids=type
    )
    @pytest.mark.parametrize(("solution", "kind"), [(GSM8K, "hashes"), (MATH, "box")])
    def test_a_whole_solution_is_refused_with_the_setting(
        self, refused: Refused, verifier: Any, solution: str, kind: str
    ) -> None:
        assert refused({"prompt": "p", "answer": solution}, verifier=verifier) == (
            f"'answer' holds a whole solution, which no answer equals for {type(verifier).__name__}: set "
            f"reading.extract: {kind}, seen the end {solution!a}."
        )

    def test_a_verifier_that_reads_solutions_gets_them(self, read: Read) -> None:
        assert read({"prompt": "p", "answer": self.GSM8K}, verifier=CountdownVerifier()).row["answer"] == self.GSM8K

    @pytest.mark.parametrize(
        "answer",
        ["4", r"\boxed{4}", r"$\boxed{4}$.", r"x = \boxed{4}", "#### Heading\nText", "#hash", "a\n####", r"\boxed"],
    )
    def test_answers_that_are_no_solutions(self, answer: str) -> None:
        assert solution_kind(answer) is None


class TestChoices:
    VERIFIER = MultipleChoice("ABCDEFGHIJ")

    @pytest.mark.parametrize(
        ("choices", "settings", "answer", "letter"),
        [
            (["x", "y", "z"], {"answer_is": "index"}, 2, "C"),
            (["x", "y", "z"], {"answer_is": "index"}, 0.0, "A"),
            (["x", "y", "z"], {"answer_is": "index"}, "1", "B"),
            (["x", "y", "z"], {}, "C", "C"),
            (["x", "y", "z"], {}, "(c)", "C"),
            (["1", "2", "3"], {"answer_is": "text"}, 3, "C"),
            (["x", "y", "z"], {"answer_is": "text"}, " y", "B"),
            (list("abcdefghij"), {}, "J", "J"),
            ({"text": ["x", "y"], "label": ["1", "2"]}, {}, "2", "B"),
            ({"text": ["x", "y"], "label": ["A", "B"]}, {}, "B", "B"),
            ({"text": ["x", "y"]}, {}, "B", "B"),
            ([{"text": "x", "label": "1"}, {"text": "y", "label": "2"}], {}, 2, "B"),
            ([{"text": "x"}, {"text": "y"}], {}, "A", "A"),
            ({"A": "x", "B": "y", "C": None}, {}, "B", "B"),
            ([3.5, 4], {"answer_is": "text"}, 4, "B"),
            (["x", "y", "z"], {"extract": "box"}, r"It is \boxed{B}.", "B"),
            (["x", "y", "z"], {"extract": "hashes", "answer_is": "index"}, "#### 2", "C"),
        ],
    )
    def test_the_answer_becomes_the_letter(
        self, read: Read, choices: Any, settings: dict[str, Any], answer: Any, letter: str
    ) -> None:
        row = {"prompt": "p", "options": choices, "answer": answer}
        assert read(row, verifier=self.VERIFIER, choices="options", **settings).row == {**row, "answer": letter}

    def test_they_stand_below_the_prompt_as_they_are(self, read: Read) -> None:
        row = {"prompt": "Which?", "options": ["{letter}", "{text} {prompt}", "\\1"], "answer": "A"}
        prompt = read(row, choices="options", choice_format="{letter}) {text};")
        assert prompt.text == "Which?\nA) {letter};\nB) {text} {prompt};\nC) \\1;"

    def test_a_field_for_each(self, read: Read) -> None:
        row = {"prompt": "p", "A": "x", "B": "y", "C": 3, "answer": "C"}
        prompt = read(row, choices=["A", "B", "C"], verifier=MultipleChoice("ABC"))
        assert (prompt.text, prompt.row["answer"]) == ("p\nA. x\nB. y\nC. 3", "C")

    @pytest.mark.parametrize(
        ("choices", "settings", "answer", "expected"),
        [
            (
                ["x", "y"],
                {"answer_is": "index"},
                2,
                "must be the index of one of the choices (reading.answer_is), which",
            ),
            (["x", "y"], {"answer_is": "index"}, -1, "are '0, 1', not '-1'."),
            (["x", "y"], {"answer_is": "index"}, 0.5, "are '0, 1', not '0.5'."),
            (["x", "y"], {"answer_is": "index"}, "A", "are '0, 1', not 'A'."),
            (
                ["x", "y"],
                {},
                1,
                "must be the letter of one of the choices (reading.answer_is), which are 'A, B', not '1'.",
            ),
            (["x", "y"], {}, "C", "are 'A, B', not 'C'."),
            ({"text": ["x", "y"], "label": ["1", "2"]}, {}, "3", "are '1, 2', not '3'."),
            (["x", "x", "y"], {"answer_is": "text"}, "x", "are 'x, x, y', not 'x'."),
            (
                ["x"],
                {},
                "A",
                "reading.choices 'options' must hold 2 to 26 texts or numbers, none of them empty, not [\"x\"].",
            ),
            (["x", ""], {}, "A", "none of them empty, not"),
            (["x", None], {}, "A", "none of them empty, not"),
            (["x"] * 27, {}, "A", "must hold 2 to 26 texts"),
            ("x, y", {}, "A", "none of them empty, not 'x, y'."),
            (
                {"text": ["x", "y"], "label": ["1", "1"]},
                {},
                "1",
                "the labels of the choices in 'options' are not one for",
            ),
            ({"text": ["x", "y"], "label": ["1"]}, {}, "1", "the labels of the choices in 'options' are not one for"),
        ],
    )
    def test_an_answer_that_is_no_choice_is_refused(
        self, refused: Refused, choices: Any, settings: dict[str, Any], answer: Any, expected: str
    ) -> None:
        row = {"prompt": "p", "options": choices, "answer": answer}
        assert expected in refused(row, choices="options", **settings)

    def test_more_choices_than_the_verifier_knows(self, refused: Refused) -> None:
        row = {"prompt": "p", "options": list("uvwxy"), "answer": "A"}
        assert refused(row, choices="options", verifier=MultipleChoice()) == (
            "there are 5 choices, and MultipleChoice knows the letters ABCD: set its choices: ABCDE, or as many as the "
            "longest row needs."
        )

    @pytest.mark.parametrize(
        ("row", "name"),
        [
            ({"choices": ["red", "blue"]}, "choices"),
            ({"options": ["red", "blue"]}, "options"),
            ({"endings": ["red", "blue"]}, "endings"),
            ({"choices": {"text": ["red", "blue"], "label": ["1", "2"]}}, "choices"),
            ({"A": "red", "B": "blue", "C": "green"}, "[A, B, C]"),
        ],
    )
    def test_choices_that_do_not_reach_the_prompt_are_refused(self, refused: Refused, row: Any, name: str) -> None:
        row |= {"prompt": "Which?", "answer": "B"}
        assert refused(row, verifier=MultipleChoice()).endswith(f"set reading.choices: {name}.")

    @pytest.mark.parametrize(
        ("row", "verifier"),
        [
            ({"prompt": "Which?\n(A)  Red one (B) blue", "choices": ["Red one", "blue"]}, MultipleChoice()),
            ({"prompt": "Which?", "tags": ["x", "y"]}, MultipleChoice()),
            ({"prompt": "Which?", "choices": ["x", "y"]}, ExactMatch()),
            ({"prompt": "Which?", "choices": "none"}, MultipleChoice()),
        ],
    )
    def test_others_are_not(self, read: Read, row: Any, verifier: Any) -> None:
        assert read({**row, "answer": "B"}, verifier=verifier).text == row["prompt"]


class TestPromptFormat:
    ROW = {"nums": [3, 5, 8], "goal": 16, "a": {"b": "x"}, "n": None, "answer": "{goal}"}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("written", "expected"),
        [
            ("Make {goal} from {nums}.", "Make 16 from [3, 5, 8]."),
            ("{a.b}{nums.0}{nums.-1}", "x38"),
            ("{answer}: \\boxed{} {1} { } {{goal}} {goal}", "{goal}: \\boxed{} {1} { } {goal} 16"),
        ],
    )
    def test_fields_are_put_in_once(self, read: Read, written: str, expected: str) -> None:
        assert read(self.ROW, prompt_format=written).text == expected

    @pytest.mark.parametrize(
        ("written", "expected"),
        [
            ("{target}", 'the field \'target\' is missing, the row has ["nums", "goal", "a", "n", "answer"].'),
            ("{a.__class__}", "the field 'a.__class__' is missing, 'a' has [\"b\"]."),
            ("{nums.3}", "the field 'nums.3' is missing, 'nums' is a list of 3: [3, 5, 8]."),
            ("{n}", "'n' of reading.prompt_format has nothing to put in: null."),
        ],
    )
    def test_what_is_missing_is_named(self, refused: Refused, written: str, expected: str) -> None:
        assert refused(self.ROW, prompt_format=written) == expected

    def test_the_verifier_finds_fields_by_the_names_that_it_looks_for(self, read: Read) -> None:
        settings = {"fields": {"numbers": "nums", "target": "goal"}, "prompt_format": "{nums} {goal}>"}
        prompt = read(self.ROW, answer_field=None, verifier=CountdownVerifier(), **settings)
        assert prompt.row == {**self.ROW, "numbers": [3, 5, 8], "target": 16}
        assert prompt.verifier.verify("3+5+8", prompt.row).correct


def test_without_an_answer_field_the_row_stays_as_it_is(read: Read) -> None:
    row = {"prompt": "p", "answer": ["1", "2"]}
    assert read(row, answer_field=None, verifier=CountdownVerifier()).row == row


@pytest.mark.parametrize(
    ("name", "expected"),
    [("answers.0", "x"), ("answers.-1", "y"), ("of.text.1", "q"), ("of.1.text", "q")],
)
def test_names_reach_into_lists(read: Read, name: str, expected: str) -> None:
    row = {"prompt": "p", "answers": ["x", "y"], "of": [{"text": "p"}, {"text": "q"}]}
    assert read(row, answer_field=name).row["answer"] == expected


@pytest.mark.parametrize(
    "name", ["answers.2", "answers.-3", "answers.x", "answers.1.0", "empty.0", "answers.00000000000"]
)
def test_names_that_lead_nowhere(refused: Refused, name: str) -> None:
    message = refused({"prompt": "p", "answers": ["x", "y"], "empty": []}, answer_field=name)
    assert message.startswith(f"the field {name!r} is missing, ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '{"a": 1',
            "'info' of reading.json_fields is no JSON (expecting ',' delimiter: line 1 column 8 (char 7)), seen ",
        ),
        ("NaN", "'info' of reading.json_fields is no JSON (nan is no json number), seen 'NaN'."),
        ("[" * 99_999, "'info' of reading.json_fields is no JSON (maximum recursion depth exceeded"),
        (3, "'info' of reading.json_fields must be a text, not 3."),
    ],
)
def test_a_text_that_is_no_json_is_refused(refused: Refused, text: Any, expected: str) -> None:
    assert refused({"prompt": "p", "answer": "1", "info": text}, json_fields=["info"]).startswith(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"),
        (3, "3"),
        (0.1, "0.1"),
        (Decimal("2.50"), "2.50"),
        (Decimal("1E+3"), "1000"),
        (Decimal("1E+999"), "1E+999"),
        (Decimal("NaN"), None),
        (datetime.date(2024, 2, 29), "2024-02-29"),
        (datetime.datetime(2024, 2, 29), "2024-02-29"),
        (datetime.datetime(2024, 2, 29, 12, 30), "2024-02-29 12:30:00"),
        (datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC), "2024-02-29 00:00:00+00:00"),
        (datetime.time(12, 30), "12:30:00"),
        (True, None),
        (None, None),
        ([1], None),
        (float("inf"), None),
    ],
)
def test_values_as_text(value: object, text: str | None) -> None:
    assert as_text(value) == text


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"json_fields": []}, "reading.json_fields must name fields of the rows, got []."),
        ({"json_fields": [""]}, "reading.json_fields must name fields of the rows, got ['']."),
        ({"choices": ""}, "reading.choices must name fields of the rows, got ['']."),
        ({"choices": ["A", "A"]}, "reading.choices names a field twice: ['A', 'A']."),
        ({"fields": {}}, "reading.fields must name fields of the rows, got []."),
        ({"fields": {"": "a"}}, "reading.fields must give each field a name, got {'': 'a'}."),
        (
            {"fields": {"answer": "a"}},
            "reading.fields must leave answer to answer_field, which names the field of the answer.",
        ),
        (
            {"prompt_format": "Why?"},
            "reading.prompt_format must name a field of the rows in braces, as in {question}, got",
        ),
        (
            {"choices": "c", "choice_format": "{text}"},
            "reading.choice_format must hold {letter} and {text} once each, got",
        ),
        (
            {"choices": "c", "answer_is": "number"},
            "reading.answer_is must be one of letter, index, text, got 'number'.",
        ),
        (
            {"answer_is": "index"},
            "reading.answer_is and reading.choice_format are about choices: set reading.choices, too.",
        ),
        ({"extract": "boxes"}, "reading.extract must be one of box, hashes, pattern or null, got 'boxes'."),
        (
            {"extract": "pattern"},
            "reading.extract: pattern and reading.extract_pattern go together, got 'pattern' and None.",
        ),
        (
            {"extract_pattern": "x"},
            "reading.extract: pattern and reading.extract_pattern go together, got None and 'x'.",
        ),
        (
            {"extract": "pattern", "extract_pattern": "("},
            "reading.extract_pattern '(' is not a regular expression: missing",
        ),
    ],
)
def test_settings_that_make_no_sense(refusal: Refusal, settings: dict[str, Any], expected: str) -> None:
    assert refusal(Reading, **settings).startswith(expected)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"prompt_field": "question", "prompt_format": "{question}"},
            "reading.prompt_format takes the place of prompt_field: leave out one of them, got prompt_field "
            "'question'.",
        ),
        (
            {"answer_field": None, "extract": "box"},
            "answer_field is null, and reading.extract and reading.answer_is are about the answer.",
        ),
    ],
)
def test_settings_that_exclude_each_other(
    read: Read, refusal: Refusal, settings: dict[str, Any], expected: str
) -> None:
    assert refusal(read, {"question": "p", "answer": "1"}, **settings) == expected


def test_a_run_from_before_goes_on_without_a_word() -> None:
    old = "data: {train: {class_path: JsonLines, init_args: {path: x, answer_field: answer}}}"
    new = "data: {train: {class_path: JsonLines, init_args: {path: x, answer_field: answer, reading: null}}}"
    assert config_changes(old, new) == []
