"""fit, check, validate, test and predict: parse, resolve, check, build, check again, run."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from asymgrpo_app.checkpoints.run_folder import DISK_TROUBLE, claimed
from asymgrpo_app.checks.callbacks import check_callbacks, check_evaluation_callbacks
from asymgrpo_app.checks.data import check_data, preview
from asymgrpo_app.checks.memory import memory_lines
from asymgrpo_app.checks.objects import check_adapters, check_engine, check_lengths, check_training
from asymgrpo_app.checks.options import check_options
from asymgrpo_app.checks.policy import check_policy
from asymgrpo_app.checks.precision import bfloat16_lines
from asymgrpo_app.checks.report import arithmetic
from asymgrpo_app.checks.second_opinion import check_second_opinion
from asymgrpo_app.cli.build import Run, build, refuse_nulls
from asymgrpo_app.cli.parser import RunParser
from asymgrpo_app.cli.resume import compare_with_checkpoint, resolve_run
from asymgrpo_app.errors import ExitCode, RunError, UserError, one_line
from asymgrpo_app.rollout.samplers import installed_sampler
from asymgrpo_app.runtime.compat import while_restoring
from asymgrpo_app.runtime.console import quiet_libraries, say
from asymgrpo_app.runtime.environment import stay_on_loopback
from asymgrpo_app.runtime.processes import lost_exchange, observe_processes
from asymgrpo_app.runtime.vllm_import import ImportTrial


def run(arguments: Sequence[str]) -> int:
    """Parse, check and run one subcommand; returns the exit code."""
    quiet_libraries()
    observe_processes()
    made = prepared(arguments)
    try:
        if made.command == "fit":
            check_fit(made, dry_run=False)
        else:
            check_evaluation(made)
        _start(made)
    finally:
        made.data.close()
    return ExitCode.OK


def check(arguments: Sequence[str], trial: ImportTrial | None = None) -> int:
    """`asymgrpo check`: all that `fit` does before it loads a model, and a check of every row of the training data.

    Args:
        arguments: Those of `fit`.
        trial: An import of vLLM that has begun; waited for if the run samples with vLLM.
    """
    quiet_libraries()
    made = prepared(["fit", *arguments])
    try:
        check_fit(made, dry_run=True)
        if trial is not None and installed_sampler(made.section.rollout.sampler) == "vllm":
            trial.finish()
    finally:
        made.data.close()
    say("Nothing stands in the way of this run.")
    return ExitCode.OK


def prepared(arguments: Sequence[str]) -> Run:
    """Parse a config, check it and the run folder, and build its objects.

    Raises:
        UserError: The config or the folder cannot be used.
    """
    parser = RunParser(arguments)
    section, fitting = parser.section, parser.config["subcommand"] == "fit"
    resolve_run(section, fitting=fitting, config_names=parser.config_paths)
    if fitting and section.ckpt_path is not None:
        compare_with_checkpoint(section, parser.text)
    refuse_nulls(parser)
    check_options(section)
    stay_on_loopback(section.trainer.num_nodes)
    return build(parser)


def check_fit(made: Run, *, dry_run: bool) -> None:
    """Check all that a training run needs, then print its batch sizes, memory and first prompts.

    Raises:
        UserError: With what is wrong.
    """
    module, data, trainer, section = made.module, made.data, made.trainer, made.section
    check_training(module, data, trainer, section)
    check_lengths(module, data, section.rollout)
    notes = check_callbacks(module, data, trainer, section)
    adapters = check_adapters(module, trainer, section.ckpt_path)
    notes += check_policy(module) + check_data(data, every_row=dry_run)
    notes += check_second_opinion(data, trainer)
    lines = [arithmetic(module, data, trainer, section), *adapters]
    lines += memory_lines(module, data, trainer, section.rollout) + bfloat16_lines(trainer, section.rollout)
    say("\n".join([*lines, *notes, "", *preview(data, section.rollout.max_completion_tokens)]))


def check_evaluation(made: Run) -> None:
    """Check all that an evaluation needs.

    Raises:
        UserError: With what is wrong.
    """
    if not made.data.evaluation_sets:
        raise UserError("data.validation is empty: name at least one set to evaluate.")
    if made.command == "validate" and made.trainer.limit_val_batches == 0:
        raise UserError("trainer.limit_val_batches is 0, so nothing would be evaluated: leave it out.")
    check_evaluation_callbacks(made.data, made.trainer)
    check_engine(made.trainer, made.section.rollout)
    check_lengths(made.module, made.data, made.section.rollout)
    check_adapters(made.module, made.trainer, made.section.ckpt_path)
    notes = check_policy(made.module) + check_data(made.data, training=False)
    say("\n".join(notes) if notes else "All problems of the evaluation sets can be used.")


def _start(made: Run) -> None:
    """Run the command; weights that do not fit the model are reported as the user's error.

    Raises:
        UserError: The checkpoint is one of another model.
        RunError: Another process was lost, or a file of the run cannot be written.
    """
    section = made.section
    options: dict[str, Any] = {"datamodule": made.data, "ckpt_path": section.ckpt_path, "weights_only": True}
    if made.command in ("validate", "test"):
        options["verbose"] = section.verbose
    if made.command == "predict":
        options["return_predictions"] = False  # they are written to a file as they come
    try:
        with _claim(made) if made.trainer.is_global_zero else nullcontext():
            getattr(made.trainer, made.command)(made.module, **options)
    except RuntimeError as error:
        if (sentence := lost_exchange(error) or _missing_monitor(error)) is not None:
            raise RunError(sentence) from error
        if "loading state_dict" not in str(error):
            raise
        raise UserError(
            f"--ckpt_path {section.ckpt_path} does not fit model.policy {made.module.policy_path}: "
            f"{one_line(str(error))}"
        ) from error
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
        if not while_restoring(error):
            raise
        raise UserError(
            f"--ckpt_path {section.ckpt_path}: its state is not that of a run ({type(error).__name__}: "
            f"{one_line(str(error))})."
        ) from error
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        raise RunError(
            f"A file of the run in {section.run_dir} cannot be written: {one_line(str(error))}; make room or "
            "repair the folder, and continue with --ckpt_path last."
        ) from error


def _missing_monitor(error: RuntimeError) -> str | None:
    """What is wrong if `EarlyStopping` missed its metric, one that a class of the user's own logs."""
    if not str(error).startswith("Early stopping conditioned on metric"):
        return None
    tag = str(error).split("`")[1]
    return (
        f"trainer.callbacks: EarlyStopping.monitor {tag} was not there at a validation: log it in every step, or set "
        "strict to false."
    )


def _claim(made: Run) -> AbstractContextManager[None]:
    """Lock what the command writes to, before anything does: loggers write before any hook of a callback."""
    if made.command == "fit":
        return claimed(made.section.run_dir)
    return claimed(made.folder, "--output", "writes its results there")
