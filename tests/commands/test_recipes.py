"""Every shipped config parses, and each recipe stands up to `asymgrpo check` with a small model of its kind."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from asymgrpo_app.cli import main
from asymgrpo_app.cli.parser import RunParser
from tests.support import small_chat_policy
from tests.support.paths import REPOSITORY
from tools import problem_files

CONFIGS = REPOSITORY / "configs"
QUICKSTART = CONFIGS / "quickstart.yaml"
EVERY = sorted(CONFIGS.rglob("*.yaml"))
RECIPES = sorted((CONFIGS / "recipes").glob("*.yaml"))
SHAPE = {
    "vocab_size": 320,  # the bytes, and what a tokenizer of the kind adds to them
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
KINDS = {"Qwen3": Qwen3Config, "Qwen2.5": Qwen2Config, "SmolLM2": LlamaConfig}


def leaves(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their dotted key; classes with arguments are left out, as the parser completes them."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and "class_path" not in value:
            found |= leaves(value, f"{prefix}{key}.")
        elif not isinstance(value, dict | list):
            found[f"{prefix}{key}"] = value
    return found


@pytest.mark.parametrize("path", EVERY, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_config_parses_on_top_of_the_quick_start(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overlay = [] if path == QUICKSTART else [f"--config={path}"]
    parsed = yaml.safe_load(RunParser(["fit", f"--config={QUICKSTART}", *overlay]).text)
    for key, value in leaves(yaml.safe_load(path.read_text())).items():
        if not key.startswith("data.validation."):  # sets of the quick start stay beside those of an overlay or not
            assert leaves(parsed)[key] == value, key


@pytest.fixture(scope="module")
def policies(tmp_path_factory) -> dict[str, str]:
    """A folder with a small model and a tokenizer with a chat template, for each architecture that a recipe trains."""
    folders = {}
    for name, kind in KINDS.items():
        folder = tmp_path_factory.mktemp("policies") / name
        small_chat_policy.make(folder)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(kind(**SHAPE)).save_pretrained(folder)
        folders[name] = str(folder)
    return folders


def with_local_files(recipe: Path, folder: Path) -> Path:
    """The recipe with problems from files that are made here, each as the recipe reads it."""
    config = yaml.safe_load(recipe.read_text())
    sources = [config["data"]["train"], *(one["source"] for one in config["data"]["validation"].values())]
    for number, source in enumerate(sources):
        if source["class_path"] == "asymgrpo_app.prompts.Addition":  # needs no file
            continue
        place = folder / f"problems-{number}"
        place.mkdir()
        arguments = source["init_args"]
        fields = arguments["prompt_field"], arguments["answer_field"]
        rows = [dict(zip(fields, (f"What is {n} + {number}?", str(n + number)), strict=True)) for n in range(600)]
        (place / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if "name" in arguments:
            arguments["name"] = str(place)
        else:
            arguments["path"] = str(place / "test.jsonl")
    path = folder / recipe.name
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_stands_up_to_a_dry_run(recipe, policies, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(recipe.read_text())
    kind = re.match(r"[^/]+/([A-Za-z]+[\d.]+)-", config["model"]["policy"])[1]
    local = with_local_files(recipe, tmp_path)
    here = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.strategy=auto"]
    # The small tokenizer has a token per byte.
    here.append(f"--data.max_prompt_tokens={max(256, config['data']['max_prompt_tokens'])}")
    code = main(["check", f"--config={local}", f"--model.policy={policies[kind]}", *here])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert printed.out.endswith("Nothing stands in the way of this run.\n")
    prompts, group = config["data"]["prompts_per_step"], config["rollout"]["group_size"]
    updates = config["model"].get("updates_per_step", 1)
    assert f"a step is {prompts} prompts x {group} completions = {prompts * group} completions and" in printed.out
    assert f"of {prompts * group // updates} completions; 1 process, {config['trainer']['precision']}" in printed.out
    if list(tmp_path.glob("problems-0")):
        assert "600 rows of problems-0/test.jsonl, 600 of them can be used" in printed.out.replace(f"{tmp_path}/", "")


def test_the_recipes_of_the_paper_have_its_numbers():
    """Its protocol: prompts a step and an update, completions, their limit, learning rate."""
    stated = {"qwen3_4b_math": (128, 64, 8, 4096, 2e-6), "qwen2.5_math_1.5b_math": (512, 128, 8, 2560, 2e-6)}
    for name, wanted in stated.items():
        config = yaml.safe_load((CONFIGS / f"recipes/{name}.yaml").read_text())
        model, data, rollout = config["model"], config["data"], config["rollout"]
        update = data["prompts_per_step"] // model["updates_per_step"]
        limit, rate = rollout["max_completion_tokens"], model["optimizer"]["init_args"]["lr"]
        assert (data["prompts_per_step"], update, rollout["group_size"], limit, rate) == wanted
        assert model["advantage"]["init_args"] == {"beta_pos": 0.9, "beta_neg": 0.4}


def test_problem_files_hold_problem_and_answer(tmp_path):
    gsm8k = [
        {"question": "How many?", "answer": "1,000 and 80 more.\n#### 1,080"},
        {"question": "No mark", "answer": "1080"},
    ]
    maths = [
        {"problem": "Find $x$.", "solution": r"First $\boxed{2}$ is wrong, so $x = \boxed{\frac{1}{2}}$."},
        {"problem": "No box", "solution": "It is 3."},
    ]
    written = {}
    for name, rows in (("gsm8k", gsm8k), ("math", maths)):
        path = tmp_path / "data" / f"{name}.jsonl"
        assert problem_files.write(rows, problem_files.ORIGINS[name], path) == 1
        written[name] = [json.loads(line) for line in path.read_text().splitlines()]
    assert written == {
        "gsm8k": [{"problem": "How many?", "answer": "1080"}],
        "math": [{"problem": "Find $x$.", "answer": r"\frac{1}{2}"}],
    }
