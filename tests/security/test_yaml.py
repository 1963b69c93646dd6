"""Configs that are small as files and large as values."""

import time
from pathlib import Path

import pytest
import yaml

from asymgrpo_app.checkpoints.config_changes import config_changes
from asymgrpo_app.checkpoints.run_folder import record_config
from asymgrpo_app.cli import main
from asymgrpo_app.cli.config_files import check_config_file
from asymgrpo_app.errors import UserError
from asymgrpo_app.runtime.bounded_yaml import load_yaml
from tests.support.paths import QUICKSTART, REPOSITORY


def laughs(levels: int, width: int = 9) -> str:
    lines = ["a0: &a0 lol"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


BOMBS = {
    "billion laughs": laughs(10),
    "a quintillion laughs": laughs(20),
    "many aliases of one long text": f"a: &a {'x' * 10_000}\nb: [{', '.join(['*a'] * 1_000)}]\n",
    "merged keys": "a0: &a0 {k: 1}\n"
    + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12)),
    "an alias of itself": "a: &a [*a]\n",
    "an alias of itself further in": "a: &a {b: {c: [1, *a]}}\n",
    "deep lists": "a: " + "[" * 100_000 + "]" * 100_000,
    "deep mappings": "a: " + "{a: " * 50_000,
    "deep blocks": "".join(f"{' ' * n}a:\n" for n in range(1_000)),
    "many values": "a:\n" + "- 1\n" * 200_000,
    "a long text": f"a: {'x' * 2_000_000}\n",
    "many documents": "--- [1]\n" * 50_000,
}
OTHERS = {
    "an endless number": f"steps: {'9' * 5_000}\n",
    "no date": "run_dir: !!timestamp 2026-99-99\n",
    "a key that is a list": "? [1]\n: 2\n",
    "an alias of nothing": "a: *b\n",
}


@pytest.mark.parametrize("name", BOMBS | OTHERS)
def test_a_bomb_is_refused_in_a_second_with_one_sentence(tmp_path, name, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text((BOMBS | OTHERS)[name])
    began = time.process_time()
    with pytest.raises(UserError, match=r"^--config .*mine\.yaml: ") as refused:
        check_config_file(path)
    assert time.process_time() - began < 1
    sentence = str(refused.value)
    assert len(sentence) < 700
    assert "\n" not in sentence
    if name in BOMBS and name != "many documents":
        assert "16,384 values, 1,048,576 characters or 100 levels, aliases written out" in sentence


@pytest.mark.parametrize("name", ["billion laughs", "deep lists", "an alias of itself"])
@pytest.mark.parametrize("place", ["--config", "a file that a config names", "an option", "a run's folder"])
def test_a_bomb_is_refused_wherever_a_command_reads_yaml(tmp_path, monkeypatch, capsys, name, place):
    monkeypatch.chdir(tmp_path)
    Path("bomb.yaml").write_text(BOMBS[name])
    Path("outer.yaml").write_text("data: bomb.yaml\n")
    Path("run").mkdir()
    Path("run/config.yaml").write_text(BOMBS[name])
    arguments = {
        "--config": ["--config=bomb.yaml"],
        "a file that a config names": ["--config=outer.yaml"],
        "an option": [f"--data.train={BOMBS[name]}"],
    }
    if place == "a run's folder":
        record_config(tmp_path / "run", "steps: 1\n")
        assert Path("run/config.resumed-1.yaml").read_text() == "steps: 1\n"
        return
    began = time.process_time()
    assert main(["fit", *QUICKSTART, *arguments[place]]) == 2
    assert time.process_time() - began < 20  # most of it to make the parser
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("asymgrpo: error: ")


@pytest.mark.parametrize("name", BOMBS)
def test_the_config_of_a_checkpoint_may_be_one_too(name):
    for pair in ((BOMBS[name], "a: 1\n"), ("a: 1\n", BOMBS[name])):
        with pytest.raises(yaml.YAMLError):
            config_changes(*pair)


@pytest.mark.parametrize("value", ["f" * 9_000, "9" * 5_000])
@pytest.mark.parametrize("place", ["--config", "an option"])
def test_a_number_of_thousands_of_digits_is_refused(tmp_path, monkeypatch, capsys, place, value):
    monkeypatch.chdir(tmp_path)
    number = f"0x{value}" if "f" in value else value
    Path("mine.yaml").write_text(f"steps: {number}\n")
    given = ["--config=mine.yaml"] if place == "--config" else [f"--steps={number}"]
    assert main(["fit", *QUICKSTART, *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("asymgrpo: error: ")


@pytest.mark.parametrize("value", ['!!int ""', "!!float ''", "!!timestamp x", "!!bool x", '!!int "0x"', "2026-99-99"])
def test_a_value_that_is_not_what_its_tag_says(tmp_path, monkeypatch, capsys, value):
    monkeypatch.chdir(tmp_path)
    Path("outer.yaml").write_text("data: inner.yaml\n")
    Path("inner.yaml").write_text(f"train: {value}\n")
    for given in (f"--steps={value}", "--config=outer.yaml", "--config=inner.yaml"):
        assert main(["fit", *QUICKSTART, given]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("asymgrpo: error: ")


def test_long_texts_of_digits_are_texts():
    digits = "1" * 5_000
    assert load_yaml(f"a: '{digits}'\nb: {'ab' * 200}\n") == {"a": digits, "b": "ab" * 200}
    with pytest.raises(yaml.YAMLError, match="a number of more than 300 digits"):
        load_yaml(f"a: !!int '{digits}'\n")


def test_configs_with_aliases_are_read():
    assert load_yaml("a: &a [1, 2]\nb: [*a, *a]\nc: {<<: &d {e: 1}}\nf: *d\n") == {
        "a": [1, 2],
        "b": [[1, 2], [1, 2]],
        "c": {"e": 1},
        "f": {"e": 1},
    }
    assert load_yaml("- 1\n" * 16_000) == [1] * 16_000


def test_every_config_of_the_repository_is_far_below_the_limits():
    paths = [*(REPOSITORY / "configs").rglob("*.yaml")]
    assert len(paths) > 10
    for path in paths:
        check_config_file(path)
        assert load_yaml(path.read_text()) is not None
        assert path.stat().st_size < 2**20 / 16
