"""Bad input of the commands beside `fit` and `check`."""

from tests.bad_inputs.case import BadInput

LINE = '{"completion": "4", "answer": "4"}\n'
SCORE = ("score", "--verifier=ExactMatch")
QUICKSTART = "QUICKSTART"  # stands for the quick start's config and policy


def _score(content: str, *told: str, more: tuple[str, ...] = ()) -> BadInput:
    return BadInput((*SCORE, "--input=mine.jsonl", *more), told, {"mine.jsonl": content})


_SET = ("--data.validation={held_out: {source: Countdown, limit: 3}}",)
_EVALUATE = {
    f"{verb}: {name}": BadInput((verb, QUICKSTART, *arguments), told, files)
    for verb in ("validate", "predict")
    for name, arguments, told, files in (
        ("no sets", ("--data.validation={}",), ("data.validation",), {}),
        ("no checkpoint", ("--ckpt_path=last", "--run_dir=none"), ("--ckpt_path last", "none"), {}),
        ("a missing checkpoint", ("--ckpt_path=no.ckpt",), ("--ckpt_path", "no.ckpt"), {}),
        ("an unknown key", ("--data.prompt_count=1",), ("data.prompt_count",), {}),
        ("a wrong type", ("--rollout.engine.max_num_seqs=x",), ("rollout.engine.max_num_seqs", "x"), {}),
        ("a missing model", ("--model.policy=./none",), ("model.policy", "./none"), {}),
        (
            "an adapter's layer",
            ("--model.lora.target_modules=[norm]", *_SET),
            ("model.lora.target_modules", "'norm'"),
            {},
        ),
        ("a precision", ("--trainer.precision=16-mixed",), ("trainer.precision", "16-mixed"), {}),
    )
}

_SCORE = {
    "score: no verifier": BadInput(("score", "--input=mine.jsonl"), ("verifier",), {"mine.jsonl": LINE}),
    "score: no input": BadInput(SCORE, ("input",)),
    "score: a missing file": BadInput((*SCORE, "--input=no.jsonl"), ("--input", "no.jsonl")),
    "score: an unknown option": _score(LINE, "--inptu", more=("--inptu=x",)),
    "score: an unknown verifier": BadInput(
        ("score", "--verifier=NoSuch", "--input=mine.jsonl"), ("verifier", "NoSuch"), {"mine.jsonl": LINE}
    ),
    "score: a verifier's setting": _score(LINE, "extract", "last", more=("--verifier.extract=last",)),
    "score: an empty file": _score("", "--input", "mine.jsonl", "empty"),
    "score: a broken line": _score(LINE + "{\n", "mine.jsonl", "line 2", "JSON"),
    "score: no completion": _score('{"answer": "4"}\n', "mine.jsonl", "line 1", "completion"),
    "score: no answer": _score('{"completion": "4"}\n', "mine.jsonl", "line 1", "answer"),
    "score: a whole solution": _score('{"completion": "4", "answer": "4.\\n#### 4"}\n', "line 1", "whole solution"),
    "score: no row that can be judged": _score("{\n", "mine.jsonl", "none of its 1", more=("--bad_rows=skip",)),
    "score: handling of bad rows": _score(LINE, "bad_rows", "ignore", more=("--bad_rows=ignore",)),
    "score: workers": _score(LINE, "workers", "0", more=("--pool.workers=0",)),
    "score: a timeout": _score(LINE, "timeout_s", "nan", more=("--pool.timeout_s=.nan",)),
    "score: an output that exists": _score(LINE, "--output", "mine.jsonl", more=("--output=mine.jsonl",)),
    "score: an output nowhere": _score(LINE, "--output", "no/folder", more=("--output=no/folder/out.jsonl",)),
}

_EXPORT = {
    "export: nothing named": BadInput(("export",), ("--ckpt_path", "--run_dir")),
    "export: an unknown option": BadInput(("export", "--rundir=x"), ("--rundir",)),
    "export: no checkpoint": BadInput(("export", "--run_dir=none"), ("none",)),
    "export: a missing checkpoint": BadInput(("export", "--ckpt_path=no.ckpt"), ("--ckpt_path", "no.ckpt")),
    "export: a file that is no checkpoint": BadInput(
        ("export", "--ckpt_path=run/checkpoints/step-00000001.ckpt"),
        ("step-00000001.ckpt",),
        {"run/config.yaml": "model: {policy: x}\n", "run/checkpoints/step-00000001.ckpt": "x"},
        opens=True,
    ),
}

_COMPARE = {
    "compare: nothing named": BadInput(("compare",), ("files",)),
    "compare: a missing file": BadInput(("compare", "a.json", "b.json"), ("a.json",)),
    "compare: one file": BadInput(("compare", "a.json"), ("1 file",), {"a.json": "{}"}),
    "compare: files that are no results": BadInput(
        ("compare", "a.json", "b.json"), ("a.json",), {"a.json": "{}", "b.json": "{}"}
    ),
    "compare: broken JSON": BadInput(("compare", "a.json", "b.json"), ("a.json",), {"a.json": "{", "b.json": "{"}),
    "compare: a plot that is no picture": BadInput(
        ("compare", "a.json", "b.json", "--plot=x.pdf"), ("--plot", "x.pdf"), {"a.json": "{}", "b.json": "{}"}
    ),
    "compare: an output that exists": BadInput(
        ("compare", "a.json", "b.json", "--output=a.json"), ("--output", "a.json"), {"a.json": "{}", "b.json": "{}"}
    ),
}

_NO_COMMAND = {
    "no command": BadInput(("train",), ("train",)),
}

CASES = _EVALUATE | _SCORE | _EXPORT | _COMPARE | _NO_COMMAND
