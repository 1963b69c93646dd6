"""The prediction file: its schema, and interruptions at every byte."""

import json
from contextlib import closing
from dataclasses import replace
from random import Random

import pytest

from asymgrpo_app.errors import UserError
from asymgrpo_app.evaluation.outcomes import Prediction, ProblemOutcome, outcomes_of
from asymgrpo_app.evaluation.predictions import (
    PredictionHeader,
    PredictionWriter,
    encoded,
    finished_sets,
    header_path,
    read_header,
    read_predictions,
)
from asymgrpo_app.evaluation.results import EvaluationProtocol, EvaluationRun
from asymgrpo_app.prompts.base import EncodedPrompt, Prompt
from asymgrpo_app.rewards import ExactMatch, Status, Verdict
from asymgrpo_app.rollout.types import Completion, JudgedCompletion, RolloutBatch, SamplingSettings

SAMPLES = 2
PROTOCOL = EvaluationProtocol(problems=3, samples=SAMPLES, temperature=1.0, top_p=1.0, max_tokens=64)
HEADER = PredictionHeader(EvaluationRun("org/model", None, 0, "0.1", None), {"a": PROTOCOL, "b": PROTOCOL})


def prediction(set_name="a", index=0, sample=0, **changes):
    fields = {
        "set": set_name,
        "uid": f"{set_name}.jsonl/{index + 1}",
        "index": index,
        "sample": sample,
        # A line separator, a control character, half a surrogate pair: nothing may break the line or the file.
        "completion": f"so x = {index}\n\u2028\x00\x85\ud800 “{sample}”",
        "correct": (index + sample) % 2 == 0,
        "status": "ok",
        "truncated": False,
        "length": 5 + sample,
        "logprob_sum": -0.1 * (index + 1),
        "answer_class": sample,
    }
    return Prediction(**(fields | changes))


EVERYTHING = [prediction(name, index, sample) for name in "ab" for index in range(3) for sample in range(SAMPLES)]


def write_all(path, predictions=EVERYTHING, header=HEADER):
    with closing(PredictionWriter(path, header)) as writer:
        writer.write(predictions)
    return path.read_bytes()


def test_every_field_of_every_completion_comes_back(tmp_path):
    path = tmp_path / "predictions.jsonl"
    content = write_all(path)
    assert list(read_predictions(path)) == EVERYTHING
    assert read_header(path) == HEADER
    assert content.count(b"\n") == len(EVERYTHING) == len(content.splitlines())
    assert list(json.loads(content.splitlines()[0])) == [
        "set",
        "uid",
        "index",
        "sample",
        "completion",
        "correct",
        "status",
        "truncated",
        "length",
        "logprob_sum",
        "answer_class",
    ]


def test_an_interruption_at_any_byte_ends_in_the_same_file(tmp_path):
    path = tmp_path / "predictions.jsonl"
    run, everything = replace(HEADER, sets={"a": PROTOCOL}), EVERYTHING[:6]
    whole = write_all(path, everything, run)
    header = header_path(path).read_bytes()
    for cut in range(len(whole) + 1):  # a process may end anywhere, also within a character's escape
        path.write_bytes(whole[:cut])
        complete = whole[:cut].count(b"\n")
        with closing(PredictionWriter(path, run)) as writer:
            assert list(writer.written) == [own.key for own in everything[:complete]]
            # What is not complete is sampled again, problem by problem.
            again = [own for own in everything if not writer.is_complete(own.set, own.index)]
            assert len(again) == len(everything) - complete // SAMPLES * SAMPLES
            writer.write(again)
        assert path.read_bytes() == whole
    assert header_path(path).read_bytes() == header


def test_lines_are_in_the_file_as_soon_as_they_are_written(tmp_path):
    path = tmp_path / "predictions.jsonl"
    writer = PredictionWriter(path, HEADER)
    for number, own in enumerate(EVERYTHING, start=1):
        writer.write([own])
        assert path.read_bytes() == b"".join(map(encoded, EVERYTHING[:number]))
    writer.close()
    writer.close()


def test_an_interruption_before_the_first_line_is_resumed(tmp_path):
    path = tmp_path / "predictions.jsonl"
    PredictionWriter(path, HEADER).close()
    path.unlink()
    write_all(path)
    assert list(read_predictions(path)) == EVERYTHING


def test_a_file_that_does_not_exist_is_begun(tmp_path):
    assert write_all(tmp_path / "predictions.jsonl") == b"".join(map(encoded, EVERYTHING))


def test_the_writer_keeps_no_texts(tmp_path):
    path = tmp_path / "predictions.jsonl"
    with closing(PredictionWriter(path, HEADER)) as writer:
        writer.write(EVERYTHING)
        assert [*writer.written.values()] == [replace(own, completion="") for own in EVERYTHING]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (replace(HEADER, run=replace(HEADER.run, model="other")), "model was 'org/model' and is 'other' now"),
        (replace(HEADER, run=replace(HEADER.run, seed=1)), "seed was 0 and is 1 now"),
        (replace(HEADER, run=replace(HEADER.run, checkpoint="x.ckpt")), "checkpoint was None and is 'x.ckpt' now"),
        (replace(HEADER, sets={"a": PROTOCOL}), "the list of sets was ['a', 'b'] and is ['a'] now"),
        (
            replace(HEADER, sets=HEADER.sets | {"b": replace(PROTOCOL, temperature=0.4)}),
            "temperature of set b was 1.0 and is 0.4 now",
        ),
    ],
)
def test_another_run_does_not_go_on_with_the_file(tmp_path, header, message):
    path = tmp_path / "predictions.jsonl"
    whole = write_all(path, EVERYTHING[:3])
    with pytest.raises(UserError) as caught:
        PredictionWriter(path, header)
    assert message in str(caught.value)
    assert path.read_bytes() == whole


def test_another_version_of_the_code_goes_on_with_the_file(tmp_path):
    path = tmp_path / "predictions.jsonl"
    write_all(path, EVERYTHING[:3])
    newer = replace(HEADER, run=replace(HEADER.run, version="0.2", commit="abc"))
    assert write_all(path, header=newer) == b"".join(map(encoded, EVERYTHING))


def test_a_file_without_its_description_is_not_resumed(tmp_path):
    path = tmp_path / "predictions.jsonl"
    write_all(path)
    header_path(path).unlink()
    with pytest.raises(UserError, match=r"cannot be resumed: predictions\.run\.json is missing"):
        PredictionWriter(path, HEADER)


def test_completions_of_other_problems_are_not_taken_up(tmp_path):
    path = tmp_path / "predictions.jsonl"
    whole = write_all(path) + encoded(prediction("a", 0, SAMPLES))
    path.write_bytes(whole)
    with pytest.raises(UserError, match="does not belong to this run"):
        PredictionWriter(path, HEADER)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{\n", "line 2 is not JSON"),
        (b"\xff\n", "line 2 is not JSON"),
        (b"[]\n", "line 2: the content: Input should be a dictionary"),
        (encoded(prediction(index=0)), "line 2 repeats the completion of line 1"),
        (encoded(prediction(sample=1, uid="other")), "line 2: problem 0 was 'a.jsonl/1', now it is 'other'"),
        (
            encoded(prediction(index=1, status="fine")),
            "line 2: status: Input should be 'ok', 'no_answer', 'timeout' or 'error'",
        ),
        (encoded(prediction(index=-1)), "line 2: index: Input should be greater than or equal to 0, got -1"),
        (encoded(prediction(sample=-1)), "line 2: sample: Input should be greater than or equal to 0, got -1"),
        (encoded(prediction(index=1, length=0)), "line 2: length: Input should be greater than or equal to 1, got 0"),
        (
            encoded(prediction(index=1, answer_class=-2)),
            "line 2: answer_class: Input should be greater than or equal to 0",
        ),
        (
            encoded(prediction(index=1)).replace(b'"correct": false', b'"correct": 0'),
            "line 2: correct: Input should be a valid boolean, got 0",
        ),
        (
            encoded(prediction(index=1)).replace(b"-0.2", b"-1e999"),
            "line 2: logprob_sum: Input should be a finite number",
        ),
        (encoded(prediction(index=1)).replace(b'"uid"', b'"name"'), "line 2: uid: Field required"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(encoded(EVERYTHING[0]) + line + encoded(EVERYTHING[3]))
    with pytest.raises(UserError) as caught:
        list(read_predictions(path))
    assert message in str(caught.value)


def test_outcomes_of_a_finished_file(tmp_path):
    path = tmp_path / "predictions.jsonl"
    write_all(path, reversed(EVERYTHING))
    outcomes = finished_sets(path, read_predictions(path), HEADER)
    assert list(outcomes["a"]) == ["a.jsonl/1", "a.jsonl/2", "a.jsonl/3"]
    assert outcomes["a"]["a.jsonl/2"] == ProblemOutcome(EVERYTHING[2:4], has_classes=True)


def test_rollouts_and_their_lines_have_the_same_outcomes(tmp_path):
    draw = Random(0)
    prompts, groups = [], []
    for index in (4, 0, 2):
        prompt = Prompt(f"x/{index}", "?", {"answer": "1"}, ExactMatch())
        prompts.append(EncodedPrompt(prompt, "?", [1], index=index))
        groups.append(
            [
                JudgedCompletion(
                    Completion([1] * length, [-draw.random() for _ in range(length)], truncated=truncated),
                    "text",
                    Verdict(draw.random() < 0.5 and status is Status.OK, status),
                )
                for length, truncated, status in zip(
                    (3, 1, 50, 7),
                    (False, True, False, False),
                    (*[Status.OK] * 3, draw.choice(list(Status))),
                    strict=True,
                )
            ]
        )
    for answers in (None, [[0, None, 1, 0], [0, 1, 2, None], [None, 0, 0, 0]]):
        rollouts = RolloutBatch(prompts, groups, SamplingSettings(1.0, 50, (0,)), answers=answers)
        path = tmp_path / f"{answers is None}.jsonl"
        header = replace(HEADER, sets={"a": replace(PROTOCOL, samples=4)})
        outcomes = outcomes_of("a", rollouts)
        write_all(path, [own for outcome in outcomes for own in outcome.completions], header)
        found = finished_sets(path, read_predictions(path), header)["a"]
        assert list(found) == ["x/0", "x/2", "x/4"]
        assert [*found.values()] == sorted(outcomes, key=lambda outcome: outcome.completions[0].index)


def test_answers_without_classes_are_told_from_no_answers(tmp_path):
    unanswered = [prediction(sample=sample, status="no_answer", answer_class=None) for sample in range(2)]
    assert finished_sets(tmp_path, unanswered, None)["a"]["a.jsonl/1"].has_classes
    unclassed = [prediction(sample=sample, answer_class=None) for sample in range(2)]
    assert finished_sets(tmp_path, unclassed, None)["a"]["a.jsonl/1"].has_classes is False


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([], "has no completions"),
        (EVERYTHING[:6], "set b is only in one of the file and predictions.run.json"),
        (EVERYTHING[:10], "is not finished: 2 of 3 problems of set b have their 2 completions"),
        (EVERYTHING[:11], "is not finished: 2 of 3 problems of set b have their 2 completions"),
    ],
)
def test_an_unfinished_file_is_refused(tmp_path, predictions, message):
    path = tmp_path / "predictions.jsonl"
    with pytest.raises(UserError) as caught:
        finished_sets(path, predictions, HEADER)
    assert message in str(caught.value)
