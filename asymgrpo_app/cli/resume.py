"""Resolves the folder and the checkpoint of a run before anything expensive."""

from pathlib import Path
from typing import Any

import yaml

from asymgrpo_app.checkpoints.config_changes import Change, accept_changes, config_changes
from asymgrpo_app.checkpoints.files import DamagedCheckpointError, read_state
from asymgrpo_app.checkpoints.folder import check_whole, checkpoint_folder, damage_as_user_error, newest_whole
from asymgrpo_app.checkpoints.run_folder import is_used, refuse_unusable, refuse_used
from asymgrpo_app.errors import UserError, one_line
from asymgrpo_app.runtime.console import say


def resolve_run(section: Any, *, fitting: bool, config_names: list[Path]) -> None:
    """Set `run_dir` to its default and `ckpt_path: last` to a file, in place.

    Raises:
        UserError: The folder is another run's or cannot be written to, or the checkpoint cannot be used.
    """
    if section.run_dir == "":
        raise UserError("run_dir is empty: name a folder, or leave the key out.")
    section.run_dir = section.run_dir or f"runs/{config_names[0].stem if config_names else 'asymgrpo'}"
    if fitting:
        refuse_unusable(section.run_dir)
    continued = section.ckpt_path == "last"
    if continued:
        section.ckpt_path = _newest(section.run_dir, fitting=fitting)
    elif section.ckpt_path is not None:
        check_whole(section.ckpt_path)
        folder = checkpoint_folder(section.run_dir).resolve()
        continued = Path(section.ckpt_path).resolve().is_relative_to(folder)
    if fitting and not continued:
        refuse_used(section.run_dir)


def _newest(run_dir: str, *, fitting: bool) -> str | None:
    newest, skipped = newest_whole(run_dir)
    for line in skipped:
        say(f"Skipped: {line}.")
    if newest is None and not fitting:
        raise UserError(f"--ckpt_path last: there is no checkpoint in {run_dir}.")
    if newest is None and is_used(run_dir):
        say(f"There is no checkpoint in {run_dir} yet: starting from the beginning.")
    return str(newest) if newest else None


def compare_with_checkpoint(section: Any, config_text: str) -> None:
    """Report the changes of the config since the checkpoint that the run resumes from.

    Raises:
        UserError: A change that a resume does not allow.
    """
    with damage_as_user_error(section.ckpt_path):
        state = read_state(Path(section.ckpt_path))
        done, config = state.get("completed_steps"), state.get("config")
        if not isinstance(done, int) or not isinstance(config, str):
            raise DamagedCheckpointError("it lacks its step or its config")
    if section.steps < done:
        raise UserError(
            f"steps is {section.steps}, but {section.ckpt_path} has completed {done} RL steps already: raise it, "
            "or name an earlier checkpoint."
        )
    if lines := accept_changes(_changes(config, config_text, section.ckpt_path), section.ckpt_path):
        say("\n".join(["Changed since the checkpoint was written:", *(f"  {line}" for line in lines)]))


def _changes(old: str, new: str, checkpoint: str) -> list[Change]:
    try:
        return config_changes(old, new)
    except (yaml.YAMLError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(
            f"--ckpt_path {checkpoint}: the config in it cannot be read ({one_line(str(error))})."
        ) from error
