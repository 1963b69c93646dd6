"""Prompts of a step: which, in which order, and what happens to those that cannot be used."""

import json
from pathlib import Path

import pytest

from asymgrpo_app import PromptDataModule
from asymgrpo_app.checks.data import check_data, inspect, preview
from asymgrpo_app.datamodule import EvaluationSet
from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts import Countdown, JsonLines
from asymgrpo_app.prompts.screening import Reason
from asymgrpo_app.prompts.templates import ChatTemplate, PlainTemplate
from asymgrpo_app.rewards import CountdownVerifier, MathVerifier

LONG = "1" * 30


def line(number: int) -> dict[str, object]:
    return {"prompt": f"{number} + 1>", "answer": str(number + 1)}


def write(path: Path, rows: list[object]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def make(repository):
    modules = []

    def build(train=None, **settings) -> PromptDataModule:
        module = PromptDataModule(str(repository / "data/countdown_base"), train, max_prompt_tokens=20, **settings)
        modules.append(module)
        return module

    yield build
    for module in modules:
        module.close()


def texts(batch) -> list[str]:
    return [encoded.prompt.text for encoded in batch.prompts]


def test_an_epoch_has_every_prompt_once_and_resuming_needs_the_step_alone(make, tmp_path):
    path = write(tmp_path / "train.jsonl", [line(n) for n in range(10)])
    data = make(JsonLines(path), prompts_per_step=4)
    drawn = [text for step in range(5) for text in texts(data.training_batch(step))]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == sorted(f"{n} + 1>" for n in range(10))
    assert drawn[:10] != drawn[10:]
    again = make(JsonLines(path), prompts_per_step=4)
    assert texts(again.training_batch(3)) == drawn[12:16]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_out_the_same_prompts(make, world_size):
    data = make(Countdown(), prompts_per_step=12, updates_per_step=2)
    alone = data.training_batch(5).prompts
    shared = [p for rank in range(world_size) for p in data.training_batch(5, rank, world_size).prompts]
    assert sorted(shared, key=lambda p: p.index) == alone
    assert [p.update for p in alone] == [0] * 6 + [1] * 6


def test_long_prompts_are_replaced_and_counted(make, tmp_path):
    rows = [line(n) for n in range(8)] + [{"prompt": f"{n} {LONG}>", "answer": "0"} for n in range(8)]
    data = make(JsonLines(write(tmp_path / "train.jsonl", rows)), prompts_per_step=16)
    batch = data.training_batch(0)
    assert len(batch.prompts) == 16
    assert all(len(text) < 20 for text in texts(batch))
    assert [p.index for p in batch.prompts] == list(range(16))
    share = batch.metrics.means["data/too_long"]
    assert share.total >= 8  # each of the eight was drawn in the first pass, and replacements may be long again
    assert share.weight == 16 + share.total
    assert texts(data.training_batch(0)) == texts(batch)


def test_the_split_over_ranks_changes_no_replacement(make, tmp_path):
    rows = [line(n) for n in range(6)] + [{"prompt": f"{n} {LONG}>", "answer": "0"} for n in range(6)]
    data = make(JsonLines(write(tmp_path / "train.jsonl", rows)), prompts_per_step=12)
    alone = data.training_batch(0)
    parts = [data.training_batch(0, rank, 2) for rank in range(2)]
    assert sorted((p.index, p.prompt.text) for part in parts for p in part.prompts) == [
        (p.index, p.prompt.text) for p in alone.prompts
    ]
    assert (
        sum(part.metrics.means["data/too_long"].total for part in parts) == alone.metrics.means["data/too_long"].total
    )


def test_replacements_differ_by_step_and_by_round(make):
    data = make(Countdown("train"), prompts_per_step=4)
    drawn = [
        tuple(p.prompt.text for p in data.replacements(batch, round_number, batch.prompts))
        for batch in (data.training_batch(0), data.training_batch(1))
        for round_number in (1, 2)
    ]
    assert len(set(drawn)) == 4
    batch = data.training_batch(1)
    assert tuple(p.prompt.text for p in data.replacements(batch, 2, batch.prompts)) == drawn[3]
    assert [(p.index, p.update) for p in data.replacements(batch, 1, batch.prompts[2:])] == [(2, 0), (3, 0)]


def test_only_long_prompts(make, tmp_path):
    path = write(tmp_path / "train.jsonl", [{"prompt": LONG, "answer": "0"}] * 3)
    data = make(JsonLines(path), prompts_per_step=2)
    with pytest.raises(
        UserError, match=r"cannot be used \(too_long\), the first: .*, line \d: the prompt has 30 tokens"
    ):
        data.training_batch(0)


BROKEN = {
    "no JSON": ('{"prompt": "x", ', "line 3: not JSON"),
    "no answer": ({"prompt": "2 + 1>"}, "line 3: the field 'answer' is missing"),
    "empty answer": ({"prompt": "2 + 1>", "answer": " "}, "line 3: 'answer' must be"),
    "a verifier's complaint": (
        {"prompt": "2 + 1>", "answer": "3", "numbers": [2, 1], "target": "3"},
        'line 3: CountdownVerifier cannot judge this row: "target" must be a whole number',
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_row_stops_or_is_skipped(name, make, tmp_path):
    bad, message = BROKEN[name]
    good = [line(n) | {"numbers": [n, 1], "target": n + 1} for n in range(2)]
    path = write(tmp_path / "train.jsonl", [*good, bad])
    source = JsonLines(path, verifier=CountdownVerifier())
    with pytest.raises(UserError) as stopped:
        make(source, prompts_per_step=3).training_batch(0)
    assert f"{path}, {message}" in str(stopped.value)
    batch = make(source, prompts_per_step=3, bad_rows="skip").training_batch(0)
    assert set(texts(batch)) == {"0 + 1>", "1 + 1>"}
    assert batch.metrics.means["data/bad_row"].total >= 1


def test_a_reference_answer_that_cannot_be_parsed_is_found_in_a_worker(make, tmp_path):
    path = write(tmp_path / "train.jsonl", [line(1), {"prompt": "2>", "answer": "\\frac{"}])
    data = make(JsonLines(path, verifier=MathVerifier()), prompts_per_step=2)
    with pytest.raises(UserError, match=r"line 2: MathVerifier cannot judge this row: "):
        check_data(data, training=data.train_source is not None)


def test_a_broken_evaluation_row_always_stops(make, tmp_path):
    path = write(tmp_path / "test.jsonl", [line(1), {"prompt": "2>"}])
    data = make(validation={"mine": EvaluationSet(JsonLines(path))}, bad_rows="skip")
    with pytest.raises(UserError, match="line 2: the field 'answer' is missing"):
        check_data(data, training=data.train_source is not None)


def test_long_problems_leave_a_set_with_a_word_and_keep_the_seeds_of_the_others(make, tmp_path):
    path = write(tmp_path / "test.jsonl", [line(1), {"prompt": LONG, "answer": "0"}, line(2)])
    data = make(validation={"mine": EvaluationSet(JsonLines(path))})
    (note,) = check_data(data, training=data.train_source is not None)
    assert note.startswith("data.validation.mine: 1 of 3 problems left out for too many tokens, the first: ")
    assert [problem.index for problem in data.evaluation_problems("mine")] == [0, 2]


def test_a_set_without_usable_problems(make, tmp_path):
    path = write(tmp_path / "test.jsonl", [{"prompt": LONG, "answer": "0"}])
    with pytest.raises(UserError, match=r"data\.validation\.mine has no problem left"):
        check_data(make(validation={"mine": EvaluationSet(JsonLines(path))}), training=False)


def test_a_set_has_its_own_template(make, tmp_path):
    path = write(tmp_path / "test.jsonl", [line(1)])
    sets = {
        "own": EvaluationSet(JsonLines(path), template=PlainTemplate("{prompt}5")),
        "same": EvaluationSet(JsonLines(path)),
    }
    data = make(validation=sets)
    assert [data.evaluation_problems(name)[0].rendered for name in sets] == ["1 + 1>5", "1 + 1>"]


def test_problems_of_both_sides_are_told_and_counted(make, tmp_path):
    train = write(tmp_path / "train.jsonl", [line(n) for n in range(4)])
    test = write(tmp_path / "test.jsonl", [{"prompt": " 2  + 1>", "answer": "3"}])
    data = make(JsonLines(train), prompts_per_step=4, validation={"mine": EvaluationSet(JsonLines(test))})
    (note,) = check_data(data, training=data.train_source is not None)
    assert note == (
        f"data.train: 1 of the first 4 rows also found in an evaluation set, the first: {train}, line 3 is in mine. "
        "Evaluations then measure memory."
    )
    share = data.training_batch(0).metrics.means["data/in_validation"]
    assert (share.total, share.weight) == (1, 4)


def test_looking_at_everything_counts_all_faults(make, tmp_path):
    rows = [*(line(n) for n in range(5)), line(0), {"prompt": LONG, "answer": "1"}, {"prompt": "x"}, "{"]
    data = make(JsonLines(write(tmp_path / "train.jsonl", rows)))
    found = inspect(data, data.train_source)
    assert (found.tally.drawn, found.judged, found.repeated) == (9, 9, 1)
    assert found.tally.rejected == {Reason.TOO_LONG: 1, Reason.BAD_ROW: 2}
    assert [message.split(": ")[1] for message in found.tally.messages[Reason.BAD_ROW]] == [
        "the field 'answer' is missing, the row has [\"prompt\"].",
        "not JSON (expecting property name enclosed in double quotes at column 2), seen '{'.",
    ]


def test_a_chat_template_for_a_base_model(make):
    with pytest.raises(UserError, match="has no chat template"):
        check_data(make(Countdown(), template=ChatTemplate()))


def test_the_preview_is_the_first_step(make):
    data = make(Countdown(), prompts_per_step=4)
    first, second = data.training_batch(0).prompts[:2]
    assert preview(data, 1024) == [
        "The first prompts, as the policy sees them (PlainTemplate; completions of at most 1,024 tokens):",
        *(line for p in (first, second) for line in (shown_uid(p), f"    | {p.rendered}")),
    ]


def shown_uid(encoded) -> str:
    return f"  {encoded.prompt.uid}, {len(encoded.token_ids)} tokens, answer '{encoded.prompt.row['answer']}'"


def test_what_was_not_looked_at_is_not_spoken_for(make, tmp_path):
    rows = [line(n) for n in range(10)] + [{"prompt": f"{n} {LONG}>", "answer": "0"} for n in range(10)]
    data = make(JsonLines(write(tmp_path / "train.jsonl", [*rows[10:], *rows[:10]])))
    found = inspect(data, data.train_source, read=15, judged=4)
    assert (found.tally.drawn, found.judged) == (15, 4)
    (note,) = found.notes()
    assert note.startswith("4 of the first 4 rows left out for too many tokens, the first: ")
