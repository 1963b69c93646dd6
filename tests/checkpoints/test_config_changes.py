"""What a resume may change, key by key."""

import pytest
import yaml

from asymgrpo_app.checkpoints.config_changes import Change, Effect, accept_changes, config_changes
from asymgrpo_app.errors import UserError

CONFIG = """
seed_everything: 0
steps: 100
model:
  policy: a/b
  advantage: {class_path: own.AsymGRPO, init_args: {beta_pos: 0.9, cap: null}}
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.0001, betas: [0.9, 0.999]}}
  lr_scheduler: null
  lora: {rank: 8, export: merged, target_modules: null}
  micro_batch_tokens: 16384
data:
  prompts_per_step: 64
  train: {class_path: prompts.JsonLines, init_args: {path: a.jsonl, verifier: null}}
  validation: {countdown: {samples: 8}}
rollout: {group_size: 8, engine: {max_num_seqs: 64, dtype: auto}, dynamic_sampling: null}
trainer: {devices: 1, precision: 32-true}
checkpoint: {every_n_steps: 50, best: null}
ckpt_path: null
run_dir: runs/a
"""


def changes(**values: object) -> list[Change]:
    """What differs if the keys (with two underscores for a dot) have these values."""
    new = yaml.safe_load(CONFIG)
    for key, value in values.items():
        *sections, name = key.split("__")
        place = new
        for section in sections:
            place = place[section]
        place[name] = value
    return config_changes(CONFIG, yaml.safe_dump(new, sort_keys=False))


def test_nothing_changed():
    assert changes() == []


REFUSED = {
    "seed_everything": 1,
    "data__prompts_per_step": 32,
    "model__lr_scheduler": {"class_path": "CosineAnnealingLR", "init_args": {"T_max": 9}},
    "model__lora": None,
    "model__lora__rank": 16,
    "model__lora__target_modules": ["q_proj"],
    "model__optimizer__class_path": "torch.optim.SGD",
    "model__optimizer__init_args__lr": 1e-3,
    "model__optimizer__init_args__betas": [0.9, 0.95],
    "data__train__class_path": "prompts.Countdown",
}
SHOWN = {
    "steps": 200,
    "model__policy": "c/d",
    "model__advantage__init_args__beta_pos": 0.5,
    "model__advantage__class_path": "own.GRPO",
    "data__train__init_args__path": "b.jsonl",
    "data__train__init_args__verifier": {"class_path": "rewards.ExactMatch"},
    "data__validation__countdown__samples": 4,
    "data__validation__more": {"samples": 4},
    "rollout__group_size": 16,
    "rollout__dynamic_sampling": {"max_rounds": 3},
    "rollout__engine__dtype": "float32",
    "trainer__precision": "bf16-mixed",
    "data__train__init_args__added_by_another_version": 1,
}
SILENT = {
    "ckpt_path": "x.ckpt",
    "run_dir": "runs/b",
    "trainer__devices": 2,
    "model__lora__export": "adapter",
    "model__micro_batch_tokens": 100,
    "rollout__engine__max_num_seqs": 8,
    "rollout__second_opinion": {"verifier": {"class_path": "NumericMatch"}},
    "checkpoint__every_n_steps": 10,
    "checkpoint__best": {"metric": "val/countdown/avg@8"},
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_the_state_does_not_go_with_is_refused(key):
    found = changes(**{key: REFUSED[key]})
    assert [change.effect for change in found] == [Effect.REFUSED]
    with pytest.raises(UserError) as refusal:
        accept_changes(found, "x.ckpt")
    sentence = str(refusal.value)
    assert sentence.startswith(f"{key.replace('__', '.').removesuffix('.class_path')} is ")
    assert "x.ckpt was made with" in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


@pytest.mark.parametrize("key", SHOWN)
def test_what_makes_it_another_experiment_is_shown(key):
    (line,) = accept_changes(changes(**{key: SHOWN[key]}), "x.ckpt")
    assert line.startswith(key.replace("__", ".").removesuffix(".class_path"))
    assert " -> " in line


@pytest.mark.parametrize("key", SILENT)
def test_what_changes_no_number_is_nobodys_business(key):
    found = changes(**{key: SILENT[key]})
    assert len(found) == 1
    assert accept_changes(found, "x.ckpt") == []


def test_lines_have_old_and_new_value():
    assert accept_changes(changes(steps=200, rollout__group_size=16), "x.ckpt") == [
        "steps: 100 -> 200",
        "rollout.group_size: 8 -> 16",
    ]
    (line,) = accept_changes(changes(model__advantage={"class_path": "own.GRPO", "init_args": {"n": "x" * 500}}), "")
    assert line.startswith('model.advantage: {"class_path": "own.AsymGRPO"')
    assert line.endswith(" ...")
    assert len(line) < 300


def test_a_key_that_went_away_is_shown():
    without = yaml.safe_load(CONFIG)
    del without["rollout"]["group_size"]
    (change,) = config_changes(CONFIG, yaml.safe_dump(without))
    assert str(change) == "rollout.group_size: 8 -> null"


def test_a_key_that_another_version_has_says_nothing_where_it_is_null():
    old, new = "data: {gone: null, kept: 1}", "data: {kept: 1, added: null}"
    assert config_changes(old, new) == []
    changes = sorted(str(change) for change in config_changes("data: {gone: 1}", new))
    assert changes == ["data.gone: 1 -> null", "data.kept: null -> 1"]


def test_keys_are_texts_and_values_that_json_has_not_are_written_out():
    (change,) = config_changes("a: {!!binary aGk=: !!binary aGk=}\n", "a: 1\n")
    assert str(change) == """a: {"aGk=": "b'hi'"} -> 1"""
