"""What YAML 1.1 takes for numbers, dates and truth values, and people do not."""

from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from asymgrpo_app.cli.parser import RunParser
from asymgrpo_app.cli.parser_yaml import written
from asymgrpo_app.errors import UserError
from asymgrpo_app.runtime.bounded_yaml import load_yaml
from tests.support.paths import QUICKSTART
from tests.support.refusals import refusal

SCALARS = {
    "3:50": "3:50",
    "10:00:00": "10:00:00",
    "1:30.5": "1:30.5",
    "010": "010",
    "-010": "-010",
    "007": "007",
    "0o10": "0o10",
    "on": "on",
    "Off": "Off",
    "yes": "yes",
    "NO": "NO",
    "y": "y",
    "2024-01-01": "2024-01-01",
    "=": "=",
    "true": True,
    "FALSE": False,
    "null": None,
    "~": None,
    "2024": 2024,
    "-5": -5,
    "+5": 5,
    "0": 0,
    "0x10": 16,
    "0b11": 3,
    "1_000": 1000,
    "1e3": 1000.0,
    "1.0e-6": 1e-6,
    "1E+3": 1000.0,
    ".5": 0.5,
    "5.": 5.0,
    "-.inf": float("-inf"),
    "1.2.3": "1.2.3",
    "e3": "e3",
    "._": "._",
}


@pytest.mark.parametrize("text", SCALARS)
def test_a_value_is_what_it_looks_like(text):
    (value,) = load_yaml(f"a: {text}\n").values()
    assert value == SCALARS[text]
    assert type(value) is type(SCALARS[text])


def test_keys_are_texts():
    names = ["2024", "on", "no", "1e3", "3.5", "null", "~", "010", "3:50", "2024-01-01", "true", ".inf", "0x10"]
    assert list(load_yaml("".join(f"{name}: 1\n" for name in names))) == names
    assert load_yaml("a: &a {2024: 1, on: 2}\nb: {<<: *a, on: 3}\n")["b"] == {"2024": 1, "on": 3}
    with pytest.raises(yaml.YAMLError, match="line 2 sets the key '2024' a second time"):
        load_yaml("2024: 1\n'2024': 2\n")


def parsed(*arguments: str):
    return RunParser(["fit", *QUICKSTART, *arguments]).section


def both_ways(key: str, text: str, folder: Path) -> list[str]:
    """`key: text` in a config, and as an option."""
    *sections, last = key.split(".")
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(sections)]
    path = folder / "mine.yaml"
    path.write_text("\n".join([*lines, f"{'  ' * len(sections)}{last}: {text}"]) + "\n")
    return [f"--config={path}", f"--{key}={text}"]


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("steps", "010", 10),
        ("steps", "1_000", 1000),
        ("steps", "0x10", 16),
        ("time_limit", "10:00:00", "10:00:00"),
        ("time_limit", "1-00:00:00", "1-00:00:00"),
        ("run_dir", "on", "on"),
        ("run_dir", "2024-01-01", "2024-01-01"),
        ("run_dir", "3:50", "3:50"),
        ("rollout.temperature", ".5", 0.5),
        ("rollout.temperature", "1e0", 1.0),
        ("rollout.canary.digest", "no", False),
        ("rollout.canary.digest", "on", True),
        ("trainer.detect_anomaly", "yes", True),
        ("trainer.enable_progress_bar", "off", False),
        ("model.loss.correction.mode", "off", "off"),
        ("checkpoint.best", "~", None),
    ],
)
def test_a_setting_is_read_alike_from_a_file_and_an_option(tmp_path, key, text, value):
    for argument in both_ways(key, text, tmp_path):
        found = parsed(argument)[key]
        assert found == value
        assert type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "told"),
    [
        ("steps", "3:50", "steps must be a whole number, got 3:50."),
        ("steps", "0o10", "steps must be a whole number, got 0o10."),
        ("steps", "1e3", "steps must be a whole number, got 1000.0."),
        ("steps", "yes", "steps must be a whole number, got True."),
        ("rollout.temperature", "1:30", "rollout.temperature must be a number, got 1:30."),
        ("rollout.canary.digest", "y", "rollout.canary.digest must be true or false, got y."),
        (
            "time_limit",
            "3:50",
            "time_limit must be a duration above 0 as HH:MM:SS or D-HH:MM:SS, or in seconds, got '3:50'.",
        ),
    ],
)
def test_a_setting_is_refused_alike_in_a_file_and_an_option(tmp_path, capsys, key, text, told):
    for argument in both_ways(key, text, tmp_path):
        assert refusal(["fit", *QUICKSTART, argument], capsys) == f"asymgrpo: error: {told}"


@pytest.mark.parametrize(("text", "shown"), [("2024", "2024"), ("0x10", "16"), ("1e3", "1000.0"), ("true", "True")])
def test_a_number_where_a_text_is_asked_for_wants_quotes(tmp_path, capsys, text, shown):
    (tmp_path / "mine.yaml").write_text(f"run_dir: {text}\n")
    told = f"asymgrpo: error: run_dir must be a text, got {shown}: put it in quotes."
    assert refusal(["fit", *QUICKSTART, f"--config={tmp_path}/mine.yaml"], capsys) == told
    assert parsed(f"--run_dir={text}").run_dir == text  # an option is a text already


def test_sets_may_be_named_as_anything(tmp_path):
    names = ["2024", "on", "no", "1e3", "3.5", "null", "2024-01-01"]
    sets = "".join(f"    {name}: {{source: Countdown, limit: 3}}\n" for name in names)
    (tmp_path / "mine.yaml").write_text(f"data:\n  validation:\n{sets}")
    assert list(parsed(f"--config={tmp_path}/mine.yaml").data.validation) == names
    assert list(parsed("--data.validation={on: {source: Countdown}, 5: {source: Countdown}}").data.validation) == [
        "on",
        "5",
    ]
    assert "on" in parsed("--data.validation.on.source=Countdown").data.validation


def test_files_that_a_config_names_are_read_alike(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("outer.yaml").write_text("data: inner.yaml\n")
    Path("inner.yaml").write_text("prompts_per_step: 010\n")
    assert parsed("--config=outer.yaml").data.prompts_per_step == 10
    for text, told in (
        ("bad_rows: stop\nbad_rows: skip\n", "line 2 sets the key 'bad_rows' a second time."),
        ("prompts_per_step: 1:40\n", "data.prompts_per_step must be a whole number, got 1:40."),
    ):
        Path("inner.yaml").write_text(text)
        refused = refusal(["fit", *QUICKSTART, "--config=outer.yaml"], capsys)
        assert refused == f"asymgrpo: error: data: inner.yaml: {told}"


def test_a_key_twice_in_an_option(capsys):
    refused = refusal(["fit", *QUICKSTART, "--data.verifiers={workers: 1, workers: 2}"], capsys)
    assert "data.verifiers" in refused


def test_a_text_in_braces_stays_a_text():
    found = parsed("--data.template=PlainTemplate", "--data.template.format={problem}").data.template
    assert found.init_args.format == "{problem}"


def test_whatever_a_config_holds_is_written_and_read_again():
    config = {"a": (1, 2), "b": Path("x/y"), "c": {"on": timedelta(hours=1)}, "d": {"z", "y"}, "e": True, "f": "010"}
    text = written(config | {"g": "3:50", "h": "on", "i": None, "j": "2024", "k": 1e-6})
    assert load_yaml(text) == {
        "a": [1, 2],
        "b": "x/y",
        "c": {"on": "1:00:00"},
        "d": ["y", "z"],
        "e": True,
        "f": "010",
        "g": "3:50",
        "h": "on",
        "i": None,
        "j": "2024",
        "k": 1e-6,
    }
    assert yaml.safe_load(text) == load_yaml(text)


def test_what_cannot_be_written_is_refused_with_its_key():
    with pytest.raises(UserError) as refused:
        written({"trainer": {"callbacks": [{"init_args": {"thing": object()}}]}})
    assert str(refused.value) == (
        "trainer.callbacks[0].init_args.thing cannot be written to the run's config: it is an object of the class "
        "object."
    )


def test_the_config_of_a_run_with_a_timer_can_be_written(tmp_path):
    """Its interval is an enumeration by default."""
    (tmp_path / "mine.yaml").write_text(
        "trainer:\n  callbacks:\n  - class_path: lightning.pytorch.callbacks.Timer\n"
        "    init_args: {duration: 00:01:00:00}\n"
    )
    text = RunParser(["fit", *QUICKSTART, f"--config={tmp_path}/mine.yaml"]).text
    (timer,) = yaml.safe_load(text)["trainer"]["callbacks"]
    assert timer["init_args"] == {"duration": "00:01:00:00", "interval": "step", "verbose": True}
