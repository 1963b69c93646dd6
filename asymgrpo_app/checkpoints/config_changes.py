"""Changes of the config since a checkpoint was written: refused, reported or ignored."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from asymgrpo_app.errors import UserError
from asymgrpo_app.runtime.bounded_yaml import load_yaml
from asymgrpo_app.runtime.console import printable

_SHOWN_CHARS = 100


class Effect(Enum):
    """The effect of a change on a resumed run."""

    REFUSED = auto()  # the state in the checkpoint would mean something else
    SHOWN = auto()  # the change is reported: the run goes on as another experiment
    NONE = auto()  # the change is ignored: results stay the same, but for rounding


# By effect and section. The longest listed beginning of a key decides; keys that are not listed are SHOWN.
_KEYS = {
    Effect.REFUSED: {
        "": ["seed_everything"],
        "data.": ["prompts_per_step", "repeat_steps", "train"],
        "model.": ["lora", "optimizer", "lr_scheduler"],
    },
    Effect.SHOWN: {
        # The file of the data may have moved; the number of its rows is compared.
        "data.train.init_args.": ["path", "verifier", "prompt_field", "answer_field", "reading"],
        "rollout.": ["engine.dtype", "transformers.dtype"],
        "trainer.": ["precision"],
    },
    Effect.NONE: {
        "": ["trainer", "checkpoint", "tensorboard", "time_limit", "run_dir", "ckpt_path", "model.max_skipped_updates"],
        "data.": ["bad_rows", "verifiers.workers"],
        "model.": ["attention", "compile", "gradient_checkpointing", "lora.export", "micro_batch_tokens", "score_idle"],
        "rollout.": [
            *("engine", "transformers", "server", "canary", "max_engine_restarts", "max_verifier_failures"),
            "second_opinion",
        ],
    },
}
_EFFECTS = {
    f"{section}{key}": effect
    for effect, sections in _KEYS.items()
    for section, keys in sections.items()
    for key in keys
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
    def effect(self) -> Effect:
        """The effect on a resumed run."""
        listed = [start for start in _EFFECTS if f"{self.key}.".startswith(f"{start}.")]
        effect = _EFFECTS[max(listed, key=len)] if listed else Effect.SHOWN
        return Effect.SHOWN if self.one_sided and effect is Effect.REFUSED else effect

    def __str__(self) -> str:
        return printable(f"{self.key}: {_shown(self.old)} -> {_shown(self.new)}")


def config_changes(old: str, new: str) -> list[Change]:
    """The keys in which two configs, both in YAML, differ; in the order of the new one.

    Raises:
        yaml.YAMLError: One of them is none.
    """
    return list(_changes(load_yaml(old), load_yaml(new), ""))


def accept_changes(changes: list[Change], checkpoint: str) -> list[str]:
    """The lines that report the changes to the user.

    Raises:
        UserError: A change does not go together with the state in the checkpoint.
    """
    for change in changes:
        if change.effect is Effect.REFUSED:
            raise UserError(
                f"{change.key} is {_shown(change.new)}, but {checkpoint} was made with {_shown(change.old)}, and its "
                "state goes with that: keep the setting, or start a new run from the exported policy (asymgrpo export)."
            )
    return [str(change) for change in changes if change.effect is Effect.SHOWN]


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
