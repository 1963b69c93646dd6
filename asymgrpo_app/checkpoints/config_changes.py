"""Changes of the config since a checkpoint was written: refused, reported or ignored."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import yaml

from asymgrpo_app.errors import UserError

_SHOWN_CHARS = 100


class Effect(Enum):
    """The effect of a change on a resumed run."""

    REFUSED = auto()  # the state in the checkpoint would mean something else
    SHOWN = auto()  # the change is reported: the run goes on as another experiment
    NONE = auto()  # the change is ignored: results stay the same, but for rounding


_CURSOR = "the place in the training data is counted with it"
_TRAINED = "what is trained, and so what is saved, goes by it"
_RESTORED = "its state comes from the checkpoint"

# By the longest listed beginning of a key. Keys that are not listed are SHOWN.
_EFFECTS: dict[str, tuple[Effect, str]] = {
    "seed_everything": (Effect.REFUSED, _CURSOR),
    "data.prompts_per_step": (Effect.REFUSED, _CURSOR),
    "data.repeat_steps": (Effect.REFUSED, _CURSOR),
    "data.train": (Effect.REFUSED, _CURSOR),
    "model.lora": (Effect.REFUSED, _TRAINED),
    "model.lora.export": (Effect.NONE, ""),
    "model.optimizer": (Effect.REFUSED, _RESTORED),
    "model.lr_scheduler": (Effect.REFUSED, _RESTORED),
    "data.train.init_args.path": (Effect.SHOWN, ""),  # a file may have moved; the number of its rows is compared
    "data.train.init_args.verifier": (Effect.SHOWN, ""),
    "data.train.init_args.prompt_field": (Effect.SHOWN, ""),
    "data.train.init_args.answer_field": (Effect.SHOWN, ""),
    "data.bad_rows": (Effect.NONE, ""),
    "data.verifiers.workers": (Effect.NONE, ""),
    "model.micro_batch_tokens": (Effect.NONE, ""),
    "model.score_idle": (Effect.NONE, ""),
    "model.max_skipped_updates": (Effect.NONE, ""),
    "model.gradient_checkpointing": (Effect.NONE, ""),
    "model.compile": (Effect.NONE, ""),
    "model.attention": (Effect.NONE, ""),
    "rollout.engine": (Effect.NONE, ""),
    "rollout.engine.dtype": (Effect.SHOWN, ""),
    "rollout.transformers": (Effect.NONE, ""),
    "rollout.transformers.dtype": (Effect.SHOWN, ""),
    "rollout.server": (Effect.NONE, ""),
    "rollout.max_engine_restarts": (Effect.NONE, ""),
    "rollout.max_verifier_failures": (Effect.NONE, ""),
    "rollout.canary": (Effect.NONE, ""),
    "trainer": (Effect.NONE, ""),
    "trainer.precision": (Effect.SHOWN, ""),
    "checkpoint": (Effect.NONE, ""),
    "tensorboard": (Effect.NONE, ""),
    "time_limit": (Effect.NONE, ""),
    "run_dir": (Effect.NONE, ""),
    "ckpt_path": (Effect.NONE, ""),
}


@dataclass(frozen=True)
class Change:
    """One key whose value is not the one in the checkpoint.

    Attributes:
        key: The dotted key.
        old: Value in the checkpoint.
        new: Value now.
        one_sided: Whether only one of the two configs has the key: it sets more, or the other was written by another
            version.
    """

    key: str
    old: Any
    new: Any
    one_sided: bool = False

    @property
    def rule(self) -> tuple[Effect, str]:
        """The effect, and the reason if the change is refused."""
        parts = self.key.split(".")
        starts = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        effect, why = next((_EFFECTS[start] for start in starts if start in _EFFECTS), (Effect.SHOWN, ""))
        return (Effect.SHOWN, "") if self.one_sided and effect is Effect.REFUSED else (effect, why)

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.old)} -> {_shown(self.new)}"


def config_changes(old: str, new: str) -> list[Change]:
    """The keys in which two configs, both in YAML, differ; in the order of the new one."""
    return list(_changes(yaml.safe_load(old), yaml.safe_load(new), ""))


def accept_changes(changes: list[Change], checkpoint: str) -> list[str]:
    """The lines that report the changes to the user.

    Raises:
        UserError: A change does not go together with the state in the checkpoint.
    """
    for change in changes:
        effect, why = change.rule
        if effect is Effect.REFUSED:
            raise UserError(
                f"{change.key} is {_shown(change.new)}, but {checkpoint} was made with {_shown(change.old)} and {why}: "
                "keep the setting, or start a new run from the exported policy (asymgrpo export)."
            )
    return [str(change) for change in changes if change.rule[0] is Effect.SHOWN]


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> Iterator[Change]:
    for key in [*new, *(key for key in old if key not in new)]:
        name = f"{prefix}{key}"
        if (key in old) != (key in new):
            if old.get(key) != new.get(key):  # a key that only one version has says nothing where it is null
                yield Change(name, old.get(key), new.get(key), one_sided=True)
        elif isinstance(old[key], Mapping) and isinstance(new[key], Mapping) and _same_class(old[key], new[key]):
            yield from _changes(old[key], new[key], f"{name}.")
        elif old[key] != new[key]:
            yield Change(name, old[key], new[key])


def _same_class(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether both name the same class; arguments of two different classes are not compared one by one."""
    return bool(old.get("class_path") == new.get("class_path"))


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]} ..."
