"""Command lines that are wrong, answered before anything heavy is imported."""

import json
import subprocess
import sys

import pytest

from asymgrpo_app.cli import main
from asymgrpo_app.cli.commands import COMMANDS, KEYS, SECTIONS, check_options_of_config, long_options, nearest, usage
from asymgrpo_app.errors import UserError
from tests.support.paths import QUICKSTART
from tests.support.refusals import refusal

EVERY = "The commands are fit, check, validate, test, predict, score, audit, compare, export, serve (asymgrpo --help)."
NEEDS = "needs a config: asymgrpo {} --config configs/quickstart.yaml, or at least --model.policy and --data."
SENTENCES = {
    (): f"there is no command. {EVERY}",
    ("train",): f"train is no command; did you mean fit? {EVERY}",
    ("fti",): f"fti is no command; did you mean fit? {EVERY}",
    ("FIT", "--steps=5"): f"FIT is no command; did you mean fit? {EVERY}",
    ("compar",): f"compar is no command; did you mean compare? {EVERY}",
    ("xyz",): f"xyz is no command. {EVERY}",
    ("--config", "x.yaml", "fit"): (
        f"the command comes first, as in asymgrpo fit --config configs/quickstart.yaml, got --config. {EVERY}"
    ),
    ("fit",): f"fit {NEEDS.format('fit')}train.",
    ("check",): f"check {NEEDS.format('check')}train.",
    ("validate",): f"validate {NEEDS.format('validate')}validation.",
    ("test",): f"test {NEEDS.format('test')}validation.",
    ("predict",): f"predict {NEEDS.format('predict')}validation.",
    ("fit", "--conf", "x.yaml"): "--conf is no option; did you mean --config?",
    ("fit", "--conf=x.yaml"): "--conf is no option; did you mean --config?",
    ("check", "--run_d=x"): "--run_d is no option; did you mean --run_dir?",
    ("check", "--step", "5"): "--step is no option; did you mean --steps?",
    ("fit", "--modle.policy=x"): "--modle.policy is no option; did you mean --model.policy?",
    ("fit", "-c=no.yaml"): "--config no.yaml: No such file or directory.",
    ("fit", "-cno.yaml"): "--config no.yaml: No such file or directory.",
    ("fit", "-c", "no.yaml"): "--config no.yaml: No such file or directory.",
    ("score",): "asymgrpo score needs --verifier and --input (see asymgrpo score --help).",
    ("score", "--verifier=ExactMatch"): "asymgrpo score needs --input (see asymgrpo score --help).",
    ("compare",): "asymgrpo compare needs files (see asymgrpo compare --help).",
    ("compare", "--otuput=x", "a"): "--otuput is no option; did you mean --output?",
    ("export",): "Name a checkpoint with --ckpt_path, or a run with --run_dir.",
    ("export", "--run_d=x"): "--run_d is no option; did you mean --run_dir?",
    ("serve",): "serve needs the config of the run: asymgrpo serve --config configs/quickstart.yaml.",
    ("serve", "--prot=1"): "--prot is no option; did you mean --port?",
    ("fit", "--steps=5", "-c"): "-c is the last word: the name of a file must follow it.",
}


@pytest.mark.parametrize("words", SENTENCES, ids=" ".join)
def test_one_sentence(words, capsys):
    assert refusal(words, capsys) == f"asymgrpo: error: {SENTENCES[words]}"


_LIGHT = """
import contextlib, io, json, sys
from asymgrpo_app.cli import main
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with contextlib.suppress(SystemExit):
            main(words)
print(json.dumps([name for name in ("torch", "lightning", "transformers", "numpy") if name in sys.modules]))
"""


def test_answers_come_without_torch():
    """Each of these takes seconds to import."""
    words = [["--help"], ["-h"], ["--version"], *SENTENCES]
    words += [["serve", "--port=x"], ["score", "--inptu=x"], ["compare", "a.json", "b.json"]]
    words += [[command, "--help"] for command in ("score", "compare", "export", "serve")]
    done = subprocess.run(
        [sys.executable, "-c", _LIGHT, json.dumps(words)], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_has_every_command(word, capsys):
    assert main([word]) == 0
    assert capsys.readouterr().out == f"{usage()}\n"
    assert all(f"\n  {name:<10}" in usage() for name in COMMANDS)


def test_the_ways_to_name_a_config_are_one():
    given = ["-c", "a", "-cb", "-c=d", "--config", "e", "--config=f", "--steps=5", "--run_dir", "-"]
    assert long_options(given) == [*(f"--config={file}" for file in "abdef"), "--steps=5", "--run_dir", "-"]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("stpes: 5\n", "stpes is no key; did you mean steps?"),
        ("modle: {}\n", "modle is no key; did you mean model?"),
        ("steps: 5\nsteps: 6\n", "line 2 sets the key 'steps' a second time."),
    ],
)
@pytest.mark.parametrize("way", ["--config={}", "-c={}", "-c{}"])
def test_files_are_checked_however_they_are_named(tmp_path, capsys, config, told, way):
    path = tmp_path / "mine.yaml"
    path.write_text(config)
    assert refusal(["fit", *QUICKSTART, way.format(path)], capsys) == f"asymgrpo: error: --config {path}: {told}"


KNOWN = [
    *("steps", "run_dir", "model.policy", "model.lr_scheduler", "model.lora", "model.optimizer.init_args.lr"),
    *("rollout.group_size", "rollout.engine.max_num_seqs", "data.prompts_per_step", "data.verifiers.timeout_s"),
    *("rollout.dynamic_sampling.max_rounds", "data.train", "trainer.max_steps"),
]


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("model.lr", "model.optimizer.init_args.lr"),
        ("lr", "model.optimizer.init_args.lr"),
        ("group_size", "rollout.group_size"),
        ("rollout.groupsize", "rollout.group_size"),
        ("model.pol", "model.policy"),
        ("m.p", "model.policy"),
        ("rollout.engine.max_seqs", "rollout.engine.max_num_seqs"),
        ("data.verifiers.timeout", "data.verifiers.timeout_s"),
        ("data.use_chat_template", "data.template"),
        ("trainer.max_stesp", "trainer.max_steps"),
        ("data.train.gamma", None),
        ("rollout.dynamic_sampling.gamma", None),
        ("prompt_count", None),
        ("x", None),
    ],
)
def test_the_nearest_key(key, near):
    assert nearest(key, KNOWN) == near


def test_keys_are_those_of_the_parser():
    from asymgrpo_app.cli.parser import RunParser
    from asymgrpo_app.runtime.compat import options_of

    first = set()
    for command in ("fit", "validate", "test", "predict"):
        keys = [key.partition(".")[0] for key, _, _ in options_of(RunParser([command, *QUICKSTART]).section_parser)]
        first |= set(keys)
    assert first - {"help", "config", "print_config"} == set(KEYS)
    assert set(SECTIONS) < set(KEYS)


def test_options_that_are_known_pass():
    check_options_of_config(
        [*(f"--{key}=x" for key in KEYS), "--trainer.callbacks+=x", "--trainer.callbacks+", "--prot"]
    )
    with pytest.raises(UserError, match=r"^--prot is no option; did you mean --port\?$"):
        check_options_of_config(["--prot"], more=["port"])


GUESSES = {
    "--model.lr=1e-5": "--model.lr is no option; did you mean --model.optimizer.init_args.lr?",
    "--lr=1e-5": "--lr is no option; did you mean --model.optimizer.init_args.lr?",
    "--group_size=4": "--group_size is no option; did you mean --rollout.group_size?",
    "--model.pol=x": "--model.pol is no option; did you mean --model.policy?",
    "--model.advantage.beta=1": "model.advantage has no option beta (did you mean beta_pos?), got 1.",
    "--model.optimizer.init_args.lrr=1": (
        "--model.optimizer.init_args.lrr is no option of the class it is given to (did you mean lr?)."
    ),
    "--data.train.spilt=x": "data.train has no option spilt (did you mean split?), got x.",
    "--gamma=1": "--gamma is no option.",
}


@pytest.mark.parametrize("option", GUESSES)
def test_a_guessed_option_is_answered_with_the_nearest(option, capsys):
    assert refusal(["fit", *QUICKSTART, option], capsys) == f"asymgrpo: error: {GUESSES[option]}"


def test_a_guessed_key_of_a_file_is_answered_with_the_nearest(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("model: {lr: 1.0e-5}\n")
    told = "model.lr is no option; did you mean model.optimizer.init_args.lr?"
    assert refusal(["fit", *QUICKSTART, f"--config={tmp_path}/mine.yaml"], capsys) == f"asymgrpo: error: {told}"


def test_a_run_without_a_policy(capsys):
    told = (
        "model.policy is not set: give a config, as in --config configs/quickstart.yaml, or a model, as in "
        "--model.policy data/countdown_base."
    )
    for command in ("fit", "validate"):
        assert refusal([command, "--trainer.devices=1"], capsys) == f"asymgrpo: error: {told}"
