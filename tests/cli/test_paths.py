"""`~` and variables of the environment in paths."""

import getpass
from pathlib import Path

import pytest
from jsonargparse import Namespace

from asymgrpo_app.cli import main
from asymgrpo_app.cli.parser import RunParser
from asymgrpo_app.cli.paths import expand_config_names, expand_paths, expanded
from asymgrpo_app.errors import UserError
from tests.support.paths import POLICY
from tests.support.refusals import refusal

ROW = '{"prompt": "1 1 1 1 4>", "answer": "1+1+1+1"}\n'


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """A home of its own, and a working directory in which nothing may appear."""
    folder = tmp_path / "home"
    for name in (folder, tmp_path / "here"):
        name.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.chdir(tmp_path / "here")
    return folder


def test_what_a_shell_would_make_of_it(home, tmp_path):
    for written, meant in {
        "~": home,
        "~/runs/a": home / "runs/a",
        "${HOME}/runs": home / "runs",
        "$HOME/runs": home / "runs",
        "$SCRATCH/a-${SCRATCH}": f"{tmp_path}/scratch/a-{tmp_path}/scratch",
        "runs/~": "runs/~",
        "data/*.jsonl": "data/*.jsonl",
        "a$": "a$",
    }.items():
        assert expanded("run_dir", written) == str(meant)
    assert expanded("run_dir", f"~{getpass.getuser()}/x") == str(Path(f"~{getpass.getuser()}/x").expanduser())
    assert expanded("input", Path("~/a")) == home / "a"


def test_a_folder_of_that_name_is_taken_as_it_is():
    Path("~").mkdir()
    assert expanded("run_dir", "~") == "~"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("~nobody_at_all/x", "there is no user nobody_at_all on this machine: write ./~nobody_at_all/x for a folder"),
        ("${NOWHERE}/x", "the variable NOWHERE is not set in the environment: set it, or give the path."),
        ("$NOWHERE", "the variable NOWHERE is not set in the environment"),
        ("$EMPTY/x", "the variable EMPTY is empty in the environment"),
    ],
)
def test_what_is_not_there_is_refused(written, said):
    with pytest.raises(UserError) as raised:
        expanded("run_dir", written)
    assert str(raised.value).startswith(f"run_dir {written}: {said}")


def test_every_key_of_a_path_and_no_other(home):
    part = Namespace(source=Namespace(class_path="JsonLines", init_args=Namespace(path=["~/a", "~/b"])), weight=1.0)
    config = Namespace(
        run_dir="~/run",
        data=Namespace(train=Namespace(init_args=Namespace(sources=[part], pattern="~/x", format="${HOME}"))),
        rollout=Namespace(server=Namespace(token_file="~/t", weights_folder="~/w", urls=["~/no"])),
        trainer=Namespace(logger={"class_path": "~/c", "init_args": {"save_dir": "~/logs", "name": "~/n"}}),
    )
    expand_paths(config)
    assert config.run_dir == f"{home}/run"
    assert part.source.init_args.path == [f"{home}/a", f"{home}/b"]
    assert part.source.class_path == "JsonLines"
    assert vars(config.data.train.init_args)["pattern"] == "~/x"
    assert vars(config.data.train.init_args)["format"] == "${HOME}"
    assert vars(config.rollout.server) == {
        "token_file": f"{home}/t",
        "weights_folder": f"{home}/w",
        "urls": ["~/no"],
    }
    assert config.trainer.logger == {
        "class_path": "~/c",
        "init_args": {"save_dir": f"{home}/logs", "name": f"{home}/n"},
    }


def test_the_key_in_the_message():
    part = Namespace(source=Namespace(init_args=Namespace(path=["a", "$NOWHERE"])))
    with pytest.raises(UserError, match=r"^data\.train\.sources\[0\]\.source\.path\[1\] \$NOWHERE: "):
        expand_paths(Namespace(data=Namespace(train=Namespace(init_args=Namespace(sources=[part])))))


def test_the_config_of_a_run(home, quickstart):
    (home / "rows.jsonl").write_text(ROW)
    (home / "policy").symlink_to(POLICY)
    (home / "mine.yaml").write_text(
        "run_dir: ${HOME}/runs/a\nmodel: {policy: ~/policy}\ndata:\n  train:\n    class_path: JsonLines\n"
        "    init_args: {path: ~/rows.jsonl}\n  validation:\n    held_out:\n      source:\n        class_path: "
        "JsonLines\n        init_args: {path: [$HOME/rows.jsonl]}\n"
    )
    parser = RunParser([*quickstart, "--config=~/mine.yaml"])
    section = parser.section
    assert (section.run_dir, section.model.policy) == (f"{home}/runs/a", f"{home}/policy")
    assert section.data.train.init_args.path == f"{home}/rows.jsonl"
    assert section.data.validation["held_out"].source.init_args.path == [f"{home}/rows.jsonl"]
    assert section.data.tokenizer == f"{home}/policy"
    assert f"run_dir: {home}/runs/a\n" in parser.text
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("key", ["run_dir", "model.policy", "ckpt_path", "trainer.default_root_dir"])
def test_the_commands_refuse_what_is_not_set(quickstart, key, capsys):
    assert refusal([*quickstart, f"--{key}=${{NOWHERE}}/x"], capsys).startswith(
        f"asymgrpo: error: {key} ${{NOWHERE}}/x: the variable NOWHERE is not set"
    )
    assert list(Path.cwd().iterdir()) == []


def test_names_of_configs():
    assert expand_config_names(["fit", "--config=$SCRATCH/a.yaml", "-c", "~/b", "--x=~"]) == [
        "fit",
        f"--config={expanded('', '$SCRATCH/a.yaml')}",
        "-c",
        expanded("", "~/b"),
        "--x=~",
    ]


def test_other_commands(home, capsys):
    (home / "in.jsonl").write_text('{"completion": "2", "answer": "2"}\n')
    assert main(["score", "--verifier=ExactMatch", "--input=~/in.jsonl", "--output=$HOME/out.jsonl"]) == 0
    assert (home / "out.jsonl").exists()
    assert "--input ${NOWHERE}/a: the variable NOWHERE" in refusal(
        ["score", "--verifier=ExactMatch", "--input=${NOWHERE}/a"], capsys
    )
    assert "--run_dir ~/nothing" not in refusal(["export", "--run_dir=~/nothing"], capsys)
    assert "--token_file $NOWHERE: the variable NOWHERE" in refusal(["serve", "--token_file=$NOWHERE"], capsys)
