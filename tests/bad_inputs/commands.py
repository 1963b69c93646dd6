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

_SUMS = ("--source=Addition", "--pool.workers=1")
_SCORE = {
    "score: no verifier": BadInput(("score", "--input=mine.jsonl"), ("verifier",), {"mine.jsonl": LINE}),
    "score: no input": BadInput(SCORE, ("input",)),
    "score: a missing file": BadInput((*SCORE, "--input=no.jsonl"), ("--input", "no.jsonl")),
    "score: an unknown option": _score(LINE, "--inptu", more=("--inptu=x",)),
    "score: an unknown verifier": BadInput(
        ("score", "--verifier=NoSuch", "--input=mine.jsonl"), ("verifier", "NoSuch"), {"mine.jsonl": LINE}
    ),
    "score: a verifier's setting": _score(LINE, "extract", "last", more=("--verifier.extract=last",)),
    "score: a verifier without its pattern": BadInput(
        ("score", "--verifier=RegexMatch", "--input=mine.jsonl"), ("lacks pattern",), {"mine.jsonl": LINE}
    ),
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

_AUDIT = {
    f"audit: {name}": BadInput(("audit", *arguments), told, files)
    for name, arguments, told, files in (
        ("no data", (), ("--source", "--config"), {}),
        ("an unknown option", ("--sourec=Addition",), ("--sourec",), {}),
        ("an unknown source", ("--source=NoSuch",), ("source", "NoSuch"), {}),
        ("an unknown verifier", (*_SUMS, "--verifier=NoSuch"), ("verifier", "NoSuch"), {}),
        ("a verifier of other data", (*_SUMS, "--verifier=MultipleChoice"), ("MultipleChoice", "ABCD"), {}),
        ("no rows", (*_SUMS, "--rows=0"), ("--rows", "0"), {}),
        ("a limit", (*_SUMS, "--max_refused=5"), ("--max_refused", "5"), {}),
        ("a limit below 0", (*_SUMS, "--max_accepted=-1"), ("--max_accepted", "-1"), {}),
        ("a limit that is no number", (*_SUMS, "--max_accepted=.nan"), ("--max_accepted", "nan"), {}),
        ("a form without an answer", (*_SUMS, "--form=x"), ("--form", "'x'", "{answer}"), {}),
        ("an output that exists", (*_SUMS, "--output=a.json"), ("--output", "a.json"), {"a.json": ""}),
        ("an output below a file", (*_SUMS, "--output=a.json/b"), ("--output", "a.json"), {"a.json": ""}),
        ("an unknown rewrite", (*_SUMS, "--skip=[zeros]"), ("--skip", "zeros"), {}),
        ("a missing file of data", ("--source=JsonLines", "--source.path=no.jsonl"), ("no.jsonl",), {}),
        ("a broken line", ("--source=JsonLines", "--source.path=a.jsonl"), ("a.jsonl", "line 1"), {"a.jsonl": "{\n"}),
        ("two kinds of data", (*_SUMS, "--config=a.yaml"), ("--source", "--config"), {"a.yaml": "data: {}\n"}),
        ("two configs", ("--config=a.yaml", "--config=b.yaml"), ("--config", "2"), {}),
        ("a source without its file", ("--source=JsonLines",), ("source", "lacks path"), {}),
        ("a verifier without its pattern", (*_SUMS, "--verifier=RegexMatch"), ("verifier", "lacks pattern"), {}),
        ("a missing config", ("--config=no.yaml",), ("--config", "no.yaml"), {}),
        ("a config without data", ("--config=a.yaml",), ("a.yaml", "data.train"), {"a.yaml": "steps: 5\n"}),
        ("a config of nothing", ("--config=a.yaml",), ("a.yaml", "data"), {"a.yaml": "data:\n"}),
        ("a set of no config", (*_SUMS, "--set=x"), ("--set", "x"), {}),
        (
            "an unknown set",
            ("--config=a.yaml", "--set=x"),
            ("a.yaml", "data.validation.x"),
            {"a.yaml": "data: {train: Addition}\n"},
        ),
        ("a missing file of rewrites", (*_SUMS, "--rewrites=no.yaml"), ("--rewrites", "no.yaml"), {}),
        *(
            (
                f"rewrites, {name}",
                (*_SUMS, "--rewrites=own.yaml"),
                ("--rewrites", "own.yaml", *told),
                {"own.yaml": text},
            )
            for name, text, told in (
                ("no YAML", "[", ("YAML",)),
                ("no list", "name: x\n", ("list",)),
                ("an unknown key", "- {name: x, kind: hack, template: y, tepmlate: z}\n", ("tepmlate",)),
                ("no kind", "- {name: x, template: y}\n", ("kind",)),
                ("another kind", "- {name: x, kind: form, template: y}\n", ("kind", "form")),
                ("neither", "- {name: x, kind: hack}\n", ("x", "template", "function")),
                ("both", "- {name: x, kind: hack, template: y, function: a.b}\n", ("x", "template", "function")),
                ("no answer", "- {name: x, kind: equal, template: y}\n", ("x", "'y'", "{answer}")),
                ("a name of ours", "- {name: nothing, kind: hack, template: y}\n", ("'nothing'",)),
                ("the name of a form", "- {name: in a box, kind: hack, template: y}\n", ("'in a box'",)),
                ("the reference's name", "- {name: the reference itself, kind: hack, template: y}\n", ("reference",)),
                ("a name twice", "- &a {name: x, kind: hack, template: y}\n- *a\n", ("'x'",)),
                ("no module", "- {name: x, kind: hack, function: no_such_module.f}\n", ("no_such_module.f",)),
                ("no function", "- {name: x, kind: hack, function: string.digits}\n", ("string.digits",)),
                ("a function that fails", "- {name: x, kind: hack, function: math.sqrt}\n", ("x", "TypeError")),
                ("a function of numbers", "- {name: x, kind: hack, function: operator.is_}\n", ("x", "False")),
            )
        ),
    )
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

CASES = _EVALUATE | _SCORE | _AUDIT | _EXPORT | _COMPARE | _NO_COMMAND
