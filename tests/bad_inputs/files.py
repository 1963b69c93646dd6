"""Configs, data, models and folders that are missing, broken or used."""

import gzip

from tests.bad_inputs.case import BadInput, config, option, setting

GOOD = '{"prompt": "1 1 1 1 4>", "answer": "1+1+1+1"}\n'
SOURCE = ("--data.train=JsonLines", "--data.train.path=mine.jsonl")


def _rows(content: str | bytes, *told: str, more: tuple[str, ...] = ()) -> BadInput:
    return BadInput((*SOURCE, *more), ("mine.jsonl", *told), {"mine.jsonl": content})


def _other(source: str, path: str, content: str | bytes, *told: str, more: tuple[str, ...] = ()) -> BadInput:
    arguments = (f"--data.train={source}", f"--data.train.path={path}", *more)
    return BadInput(arguments, ("data.train", *told), {path: content})


def _reading(settings: str, *told: str) -> BadInput:
    return BadInput((*SOURCE, f"--data.train.reading={settings}"), ("data.train", *told), {"mine.jsonl": GOOD})


def _verifier(name: str, *told: str, **settings: str) -> BadInput:
    arguments = tuple(f"--data.train.verifier.{key}={value}" for key, value in settings.items())
    return BadInput((*SOURCE, f"--data.train.verifier={name}", *arguments), told, {"mine.jsonl": GOOD})


def _evaluation(settings: str, *told: str) -> BadInput:
    return setting("data.validation", f"{{held_out: {{source: Countdown, limit: 3, {settings}}}}}", *told)


_CONFIGS = {
    "a config that is missing": BadInput(("--config=nowhere.yaml",), ("nowhere.yaml", "No such file")),
    "a folder as config": BadInput(("--config=folder",), ("folder", "directory"), {"folder/": ""}),
    "an empty config": config("", "mine.yaml", "NoneType"),
    "a config of comments": config("# steps: 5\n", "mine.yaml", "NoneType"),
    "a list as config": config("- 1\n- 2\n", "mine.yaml", "list"),
    "a config that is no text": config(b"steps: \xff\xfe\n", "mine.yaml", "UTF-8"),
    "a config in Latin-1": config("run_dir: Übung\n".encode("latin-1"), "mine.yaml", "UTF-8"),
    "broken YAML": config("steps: [1\n", "mine.yaml"),
    "tabs in YAML": config("model:\n\tpolicy: x\n", "mine.yaml", "line 2"),
    "YAML that makes Python objects": config("steps: !!python/object/apply:os.getcwd []\n", "mine.yaml", "python"),
    "a key set twice": config("steps: 5\ndata:\n  prompts_per_step: 8\nsteps: 6\n", "line 4", "steps"),
    "a nested key set twice": config(
        "data:\n  prompts_per_step: 8\n  prompts_per_step: 9\n", "line 3", "prompts_per_step"
    ),
    "two sets of the same name": config(
        "data:\n  validation:\n    a: {source: Countdown, limit: 3}\n    a: {source: Countdown, limit: 4}\n",
        "line 4",
        "a",
    ),
    "an unknown section": config("modle:\n  policy: x\n", "modle"),
    "an unknown nested key": config("rollout:\n  groupsize: 8\n", "groupsize"),
    "a section that is a number": config("rollout: 8\n", "rollout", "8"),
    "a word too many": BadInput(("extra_word",), ("extra_word",)),
}

_MODELS = {
    "a model that is missing": option("model.policy=./no/such/model"),
    "a model folder without a config": BadInput(
        ("--model.policy=./empty_model",), ("model.policy", "./empty_model", "config.json"), {"empty_model/": ""}
    ),
    "an adapter as model": BadInput(
        ("--model.policy=./adapter",),
        ("model.policy", "./adapter", "holds an adapter"),
        {"adapter/adapter_config.json": '{"peft_type": "LORA"}'},
    ),
    "a model with an adapter beside it": BadInput(
        ("--model.policy=./both",),
        ("model.policy", "./both", "holds an adapter"),
        {"both/": "data/countdown_base", "both/adapter_config.json": '{"peft_type": "LORA"}'},
    ),
    "a file as model": BadInput(("--model.policy=./a_file",), ("model.policy", "./a_file"), {"a_file": "x"}),
    "a model without a name": BadInput(("--model.policy=",), ("model.policy",)),
    "a model that no hub answers for": option("model.policy=nobody/no-such-model"),
    "a model with a broken config": BadInput(
        ("--model.policy=./broken",), ("model.policy", "./broken"), {"broken/config.json": "{"}
    ),
    "a model of no known kind": BadInput(
        ("--model.policy=./unknown",),
        ("model.policy", "./unknown"),
        {"unknown/config.json": '{"model_type": "abacus"}'},
    ),
    "a model without a tokenizer": BadInput(
        ("--model.policy=./mute",),
        ("tokenizer", "./mute"),
        {"mute/config.json": '{"model_type": "qwen3", "vocab_size": 17, "max_position_embeddings": 64}'},
    ),
    "a tokenizer of a larger vocabulary": BadInput(
        ("--model.policy=./small",),
        ("./small", "17", "16"),
        {"small/": "data/countdown_base", "small/config.json": '{"model_type": "qwen3", "vocab_size": 16}'},
    ),
    "positions that do not suffice": BadInput(
        ("--model.policy=./short",),
        ("data.max_prompt_tokens", "16", "rollout.max_completion_tokens", "10", "20"),
        {
            "short/": "data/countdown_base",
            "short/config.json": '{"model_type": "qwen3", "vocab_size": 17, "max_position_embeddings": 20}',
        },
    ),
}

_DATA = {
    "no training data": option("data.train=null", "data.train"),
    "a prompt file that is missing": BadInput(
        ("--data.train=JsonLines", "--data.train.path=nowhere.jsonl"), ("data.train", "nowhere.jsonl")
    ),
    "a pattern without files": BadInput(
        ("--data.train=JsonLines", "--data.train.path=none/*.jsonl"), ("data.train", "none/*.jsonl")
    ),
    "a source without a path": option("data.train=JsonLines", "data.train", "path"),
    "no files at all": BadInput(("--data.train=JsonLines", "--data.train.path=[]"), ("data.train", "empty")),
    "a folder as prompt file": BadInput(
        ("--data.train=JsonLines", "--data.train.path=folder"), ("data.train", "folder"), {"folder/": ""}
    ),
    "an empty prompt file": _rows("", "no prompts"),
    "a prompt file of blank lines": _rows("\n\n \n", "no prompts"),
    "a line that is cut off": _rows(GOOD + '{"prompt": "2+2>", \n', "line 2", "JSON"),
    "a line that is a list": _rows(GOOD + "[1, 2]\n", "line 2", "[1, 2]"),
    "a line with NaN": _rows(GOOD + '{"prompt": "2>", "answer": NaN}\n', "line 2", "nan"),
    "a line in Latin-1": _rows(b'{"prompt": "\xe4", "answer": "1"}\n', "line 1", "UTF-8"),
    "a row without an answer": _rows(GOOD + '{"prompt": "2>"}\n', "line 2", "answer"),
    "a row with an empty prompt": _rows('{"prompt": " ", "answer": "1"}\n' + GOOD, "line 1", "prompt"),
    "a row with a list of answers": _rows('{"prompt": "1>", "answer": ["1", "2"]}\n', "line 1", "answer", '["1", "2"]'),
    "the wrong prompt field": _rows(GOOD, "line 1", "question", more=("--data.train.prompt_field=question",)),
    "the wrong answer field": _rows(GOOD, "line 1", "a.b", more=("--data.train.answer_field=a.b",)),
    "a field without a name": BadInput(
        (*SOURCE, "--data.train.prompt_field="), ("data.train", "prompt_field"), {"mine.jsonl": GOOD}
    ),
    "a whole solution as the answer": _rows(
        '{"prompt": "1>", "answer": "It is 1.\\n#### 1"}\n', "line 1", "'answer'", "reading.extract: hashes"
    ),
    "a solution without a box": _rows(
        GOOD, "line 1", "reading.extract: box", more=("--data.train.reading.extract=box",)
    ),
    "a chat as text": _rows(
        '{"prompt": "[{\\"role\\": \\"user\\"}]", "answer": "1"}\n', "line 1", "'prompt'", "reading.json_fields"
    ),
    "choices that do not reach the prompt": _rows(
        '{"prompt": "Which?", "choices": ["one", "two"], "answer": "A"}\n',
        "line 1",
        "reading.choices: choices",
        more=("--data.train.verifier=MultipleChoice",),
    ),
    "an extraction that is none": _reading("{extract: boxes}", "reading.extract", "boxes"),
    "an unknown key of reading": _reading("{extrakt: box}", "reading", "extrakt"),
    "a reading that is a number": _reading("5", "reading must be keys", "5"),
    "a pattern for the reference that is none": _reading(
        "{extract: pattern, extract_pattern: '('}", "reading.extract_pattern", "'('"
    ),
    "a field as JSON that is no list": _reading("{json_fields: prompt}", "reading.json_fields", "prompt"),
    "an index as answer without choices": _reading("{answer_is: index}", "reading.answer_is", "reading.choices"),
    "a prompt of no fields": _reading("{prompt_format: 'Why?'}", "reading.prompt_format", "'Why?'"),
    "a JSON array as JSON Lines": _rows(f"[{GOOD.strip()}]\n", "line 1", "JsonFiles"),
    "a JSON object as an array": _other("JsonFiles", "mine.json", '{\n"rows": [\n]}\n', "one JSON object"),
    "a JSON array that is cut off": _other("JsonFiles", "mine.json", f"[{GOOD},", "line 2", "cut off"),
    "a CSV file with a column twice": _other("CsvFiles", "mine.csv", "prompt,prompt\n1,2\n", "line 1", "header"),
    "a CSV file with a quote that stays open": _other(
        "CsvFiles", "mine.csv", 'prompt,answer\r\n"1 1\r\n,4\r\n', "line 2", "unexpected end"
    ),
    "a CSV file in UTF-16": _other("CsvFiles", "mine.csv", "prompt,answer\n".encode("utf-16"), "line 1", "UTF-8"),
    "a delimiter of two characters": _other(
        "CsvFiles", "mine.csv", "a,b\n", "delimiter", "', '", more=("--data.train.delimiter=, ",)
    ),
    "a packed file that is cut off": _other(
        "JsonLines", "mine.jsonl.gz", gzip.compress(GOOD.encode() * 99)[:-9], "mine.jsonl.gz", "ended before"
    ),
    "a packed file that is none": BadInput(
        ("--data.train=JsonLines", "--data.train.path=mine.jsonl.gz"), ("mine.jsonl.gz", "zip"), {"mine.jsonl.gz": "x"}
    ),
    "a Parquet file that is none": BadInput(
        ("--data.train=ParquetFiles", "--data.train.path=mine.parquet"), ("mine.parquet",), {"mine.parquet": "PAR1"}
    ),
    "a data set that no hub answers for": BadInput(
        ("--data.train=HubDataset", "--data.train.name=nobody/no-such-data"), ("data.train", "nobody/no-such-data")
    ),
    "a folder that is no data set": BadInput(
        ("--data.train=HubDataset", "--data.train.name=./nothing"), ("data.train", "./nothing")
    ),
    "an unknown split": option("data.train.split=test"),
    "a task that is none": BadInput(
        ("--data.train=ReasoningGym", "--data.train.task=no_such"), ("data.train", "no_such")
    ),
    "a task that is refused": BadInput(
        ("--data.train=ReasoningGym", "--data.train.task=simple_integration"), ("data.train", "simple_integration")
    ),
    "a task with another setting": BadInput(
        ("--data.train=ReasoningGym", "--data.train.task=leg_counting", "--data.train.config={heads: 1}"),
        ("data.train", "heads"),
    ),
    "a mixture of nothing": BadInput(
        ("--data.train=Mixture", "--data.train.sources=[]"), ("data.train", "at least one source")
    ),
    "a weight of nothing": BadInput(
        ("--data.train=Mixture", "--data.train.sources=[{source: Countdown, weight: 0}]"),
        ("data.train", "sources[0].weight", "0"),
    ),
    "a weight that is no number": BadInput(
        ("--data.train=Mixture", "--data.train.sources=[{source: Countdown, weight: .nan}]"),
        ("data.train", "sources[0].weight", "nan"),
    ),
    "prompts that are all too long": option("data.max_prompt_tokens=1"),
    "a template without a place": BadInput(
        ("--data.template=PlainTemplate", "--data.template.format=x"), ("data.template", "{prompt}", "'x'")
    ),
    "a template for chat models": option(
        "data.template=ChatTemplate", "data.template", "ChatTemplate", "chat template"
    ),
}

_VERIFIERS = {
    "an unknown verifier": _verifier("NoSuchVerifier", "data.train.verifier", "NoSuchVerifier"),
    "a source as verifier": _verifier("asymgrpo_app.prompts.Countdown", "data.train.verifier", "prompts.Countdown"),
    "ExactMatch": _verifier("ExactMatch", "data.train", "extract", "last", extract="last"),
    "MathVerifier": _verifier("MathVerifier", "data.train", "extract", "whole", extract="whole"),
    "MultipleChoice": _verifier("MultipleChoice", "data.train", "choices", "AA", choices="AA"),
    "NumericMatch": _verifier("NumericMatch", "data.train", "rel_tolerance", "-1", rel_tolerance="-1"),
    "NumericMatch nan": _verifier("NumericMatch", "data.train", "abs_tolerance", "nan", abs_tolerance=".nan"),
    "RegexMatch": _verifier("RegexMatch", "data.train", "pattern", "(", pattern="("),
    "RegexMatch group": _verifier("RegexMatch", "data.train", "group", "3", pattern="(a)", group="3"),
    "RegexMatch without a pattern": _verifier("RegexMatch", "data.train.verifier", "pattern"),
    "an answer that is no choice": _verifier("MultipleChoice", "mine.jsonl, line 1", "MultipleChoice"),
    "a class whose instance raises": BadInput(
        (*SOURCE, "--data.train.verifier=fussy.Fussy"),
        ("data.train", "the moon is wrong"),
        {
            "mine.jsonl": GOOD,
            "fussy.py": "from asymgrpo_app.rewards import Verifier\n\n\nclass Fussy(Verifier):\n"
            "    def __init__(self):\n        raise ValueError('the moon is wrong')\n\n"
            "    def verify(self, completion, row): ...\n",
        },
    ),
    "a class whose instance fails": BadInput(
        ("--model.advantage=clumsy.Clumsy",),
        ("model.advantage", "no such book"),
        {
            "clumsy.py": "from asymgrpo_app.algorithm.advantages import AdvantageEstimator\n\n\n"
            "class Clumsy(AdvantageEstimator):\n    def __init__(self):\n        raise KeyError('no such book')\n\n"
            "    def __call__(self, groups): ...\n",
        },
    ),
    "an estimator that gives no advantages": BadInput(
        ("--model.advantage=short.Short",),
        ("Short", "[9, 1]"),
        {
            "short.py": "from asymgrpo_app.algorithm.advantages import AdvantageEstimator\n\n\n"
            "class Short(AdvantageEstimator):\n    def __call__(self, groups):\n        return groups.rewards[:, :1]\n",
        },
    ),
}

_EVALUATION = {
    "an evaluation set without a source": setting("data.validation", "{held_out: {limit: 3}}", "validation", "source"),
    "an evaluation set that is a number": setting("data.validation", "{held_out: 5}", "validation", "5"),
    "an unknown key of an evaluation set": _evaluation("sample: 3", "data.validation", "sample"),
    "evaluation without samples": _evaluation("samples: 0", "data.validation", "samples", "0"),
    "evaluation of an endless source": setting(
        "data.validation", "{held_out: {source: Countdown}}", "limit", "Countdown", "None"
    ),
    "evaluation of nothing": setting(
        "data.validation", "{held_out: {source: Countdown, limit: 0}}", "data.validation", "limit", "0"
    ),
    "more problems than there are": setting(
        "data.validation", "{held_out: {source: Countdown, limit: 100000000}}", "limit", "100000000"
    ),
    "pass@k beyond the samples": _evaluation("pass_at: [16]", "data.validation", "pass_at", "16"),
    "maj@k of nothing": _evaluation("majority_at: [0]", "data.validation", "majority_at", "0"),
    "evaluation at a negative temperature": _evaluation("temperature: -1", "data.validation", "temperature", "-1"),
    "evaluation at no temperature": _evaluation("temperature: .nan", "data.validation", "temperature", "nan"),
    "evaluation at any temperature": _evaluation("temperature: .inf", "data.validation", "temperature", "inf"),
    "evaluation with an empty nucleus": _evaluation("top_p: 0", "data.validation", "top_p", "0"),
    "evaluation without tokens": _evaluation(
        "max_completion_tokens: 0", "data.validation", "max_completion_tokens", "0"
    ),
    "evaluation beyond the positions": _evaluation("max_completion_tokens: 1000", "max_completion_tokens", "1000"),
    "a set without a name": setting("data.validation", '{"": {source: Countdown, limit: 3}}', "data.validation", "''"),
    "a set with a path as name": setting(
        "data.validation", "{a/b: {source: Countdown, limit: 3}}", "data.validation", "a/b"
    ),
}

_RUNS = {
    "a used run folder": BadInput(
        ("--run_dir=used",), ("run_dir", "used", "--ckpt_path last"), {"used/config.yaml": "steps: 1\n"}
    ),
    "a file as run folder": BadInput(("--run_dir=a_file",), ("run_dir", "a_file"), {"a_file": "x"}),
    "a run folder within a file": BadInput(("--run_dir=a_file/run",), ("run_dir", "a_file"), {"a_file": "x"}),
    "a run folder without a name": BadInput(("--run_dir=",), ("run_dir",)),
    "a checkpoint that is missing": BadInput(("--ckpt_path=nowhere.ckpt",), ("--ckpt_path", "nowhere.ckpt")),
    "a checkpoint by a word": BadInput(("--ckpt_path=best",), ("--ckpt_path", "best")),
    "a checkpoint that is none": BadInput(
        ("--ckpt_path=mine.ckpt",), ("--ckpt_path", "mine.ckpt"), {"mine.ckpt": "x"}, opens=True
    ),
    "a folder as checkpoint": BadInput(("--ckpt_path=folder",), ("--ckpt_path", "folder"), {"folder/": ""}),
}

CASES = _CONFIGS | _MODELS | _DATA | _VERIFIERS | _EVALUATION | _RUNS
