"""The folder of a run's checkpoints: listing them, choosing one to resume from, and deciding which to keep."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from asymgrpo_app.checkpoints.files import DamagedCheckpointError, Label, free_path, read_label
from asymgrpo_app.checkpoints.shards import check_readable, sweep_shards
from asymgrpo_app.errors import UserError, at_least_1
from asymgrpo_app.runtime.whole_files import PART_SUFFIX

_NAME = re.compile(r"step-([0-9]{8,})\.ckpt")


@dataclass(frozen=True)
class BestCheckpoints:
    """The checkpoints that are best by a validation metric, kept beside the newest ones.

    A step whose validation is among the best is saved, whether or not a checkpoint is due.

    Attributes:
        metric: A metric of an evaluation set, by its name in TensorBoard, e.g. `val/countdown/avg@8`.
        keep: How many to keep, at least 1.
        mode: `max`: the largest values are the best; `min`: the smallest.
    """

    metric: str
    keep: int = 1
    mode: Literal["max", "min"] = "max"

    def __post_init__(self) -> None:
        at_least_1("checkpoint.best.keep", self.keep)

    def ranked(self, labels: Iterable[Label]) -> list[Label]:
        """The labels with a value of the metric, best first; of equal ones the earlier is the better."""
        sign = -1 if self.mode == "max" else 1
        valued = [label for label in labels if not math.isnan(label.validation.get(self.metric, math.nan))]
        return sorted(valued, key=lambda label: (sign * label.validation[self.metric], label.step))

    def takes(self, candidate: Label, kept: Iterable[Label]) -> bool:
        """Whether a checkpoint would be one of the best."""
        return candidate in self.ranked([*kept, candidate])[: self.keep]

    def best_of(self, run_dir: str | Path) -> tuple[Path, float] | None:
        """The best checkpoint of a run with its value; None if no checkpoint has a value."""
        ranked = self.ranked(labels(run_dir).values())
        if not ranked:
            return None
        return checkpoint_path(run_dir, ranked[0].step), ranked[0].validation[self.metric]


def checkpoint_folder(run_dir: str | Path) -> Path:
    """The folder of a run's checkpoints."""
    return Path(run_dir) / "checkpoints"


def checkpoint_path(run_dir: str | Path, step: int) -> Path:
    """The path of a step's checkpoint."""
    return checkpoint_folder(run_dir) / f"step-{step:08d}.ckpt"


def list_checkpoints(run_dir: str | Path) -> dict[int, Path]:
    """Checkpoints of a run by their RL step, oldest first, whole or not.

    Raises:
        UserError: The folder cannot be read.
    """
    folder = checkpoint_folder(run_dir)
    try:
        paths = list(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}.") from error
    return dict(sorted((int(match[1]), path) for path in paths if (match := _NAME.fullmatch(path.name))))


def newest_whole(run_dir: str | Path) -> tuple[Path | None, list[str]]:
    """The checkpoint that `last` means: of the highest step that is whole, never one chosen by a metric.

    Returns:
        The checkpoint, or None in a run that has none yet; and for each newer one that is damaged its name and why.

    Raises:
        UserError: There are checkpoints, but none is whole.
    """
    skipped: list[str] = []
    for step, path in reversed(list_checkpoints(run_dir).items()):
        try:
            if (found := check_readable(path).step) != step:
                raise DamagedCheckpointError(f"it is the checkpoint of step {found}")
        except (DamagedCheckpointError, OSError) as damage:
            skipped.append(f"{path.name}: {reason(damage)}")
        else:
            return path, skipped
    if skipped:
        raise UserError(
            f"--ckpt_path last: no checkpoint in {checkpoint_folder(run_dir)} is whole ({'; '.join(skipped)}): put a "
            "whole one there, or start again in another folder with --run_dir."
        )
    return None, []


def check_whole(path: str | Path) -> Label:
    """Verify a checkpoint that was named by a user, and that it can be read; returns its label.

    Raises:
        UserError: It does not exist, is no checkpoint of this program, or is damaged.
    """
    if "://" in str(path):
        raise UserError(f"--ckpt_path {path} is an address: copy the checkpoint to a local folder and name it there.")
    with damage_as_user_error(path):
        if not Path(path).exists():
            raise UserError(f"--ckpt_path {path}: there is no such checkpoint.")
        return check_readable(Path(path))


@contextmanager
def damage_as_user_error(path: str | Path) -> Iterator[None]:
    """Turn damage that is found in a checkpoint named by a user into a `UserError`."""
    try:
        yield
    except (DamagedCheckpointError, OSError) as damage:
        raise UserError(f"--ckpt_path {path}: not a checkpoint of asymgrpo, or damaged: {reason(damage)}.") from damage


def labels(run_dir: str | Path) -> dict[Path, Label]:
    """The checkpoints of a run with their labels, oldest first; those whose label cannot be read are left out."""
    found = {}
    for path in list_checkpoints(run_dir).values():
        with suppress(DamagedCheckpointError, OSError):
            found[path] = read_label(path)
    return found


def obsolete(found: Mapping[Path, Label], keep: int | None, best: BestCheckpoints | None) -> list[Path]:
    """The checkpoints that may be removed: neither among the newest `keep` nor among the best. Oldest first."""
    if keep is None:
        return []
    in_order = sorted(found, key=lambda path: found[path].step)
    kept = [found[path] for path in in_order[-keep:]]
    if best is not None:
        kept += best.ranked(found.values())[: best.keep]
    return [path for path in in_order if found[path] not in kept]


def sweep(run_dir: str | Path) -> None:
    """Remove checkpoints and configs that a killed process left half-written.

    Raises:
        OSError: It cannot be removed.
    """
    for part in Path(run_dir).glob(f".config*.yaml{PART_SUFFIX}"):
        part.unlink(missing_ok=True)
    folder = checkpoint_folder(run_dir)
    for part in folder.glob(f".step-{'[0-9]' * 8}*.ckpt{PART_SUFFIX}"):
        part.unlink(missing_ok=True)
    sweep_shards(folder)


def set_aside(run_dir: str | Path, after: int) -> None:
    """Rename the checkpoints after a step, since a run that resumes from it starts another branch.

    The newest is renamed first. If the process is killed in between, the older part of the same branch is left.

    Raises:
        OSError: A checkpoint cannot be renamed.
    """
    for step, path in reversed(list_checkpoints(run_dir).items()):
        if step > after:
            path.rename(free_path(path.with_name(f"{path.name}.abandoned")))


def reason(error: Exception) -> str:
    """The reason why a file cannot be used, in a few words."""
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    return str(error)
