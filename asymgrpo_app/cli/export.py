"""Turn a checkpoint into a folder in Hugging Face format: weights, tokenizer, generation config and a model card.

The chat template is the tokenizer's. Adapters of a run with model.lora are merged into the weights.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import yaml

from asymgrpo_app.checkpoints.run_folder import CONFIG_NAME
from asymgrpo_app.cli.command_parser import CommandParser
from asymgrpo_app.errors import ExitCode, RunError, UserError, one_line
from asymgrpo_app.evaluation.files import writing
from asymgrpo_app.evaluation.results import read_results, shown
from asymgrpo_app.runtime.bounded_yaml import load_yaml
from asymgrpo_app.runtime.console import quiet_libraries, say
from asymgrpo_app.runtime.whole_files import whole_folder

if TYPE_CHECKING:  # and in functions: a wrong option is answered without torch, which takes seconds to import
    from asymgrpo_app.policy.export import ModelCard

_PREFIX = "policy."


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit code.

    Raises:
        UserError: Bad input; raised before a model is loaded where possible.
        RunError: The folder cannot be written, or the hub does not take it.
    """
    parser = CommandParser(prog="asymgrpo export", description=__doc__)
    parser.add_function_arguments(export, skip={"adapter"})
    help_text = "Of a run with model.lora, write the adapter alone, in peft's format."
    parser.add_argument("--adapter", action="store_true", help=help_text)
    options = parser.parse_args(list(arguments))
    quiet_libraries()
    export(**options)
    return ExitCode.OK


def export(
    run_dir: Path | None = None,
    ckpt_path: str = "last",
    output: Path | None = None,
    results: Path | None = None,
    push_to_hub: str | None = None,
    *,
    adapter: bool = False,
) -> None:
    """Export a checkpoint.

    Args:
        run_dir: Folder of the run; null: the one that the checkpoint lies in.
        ckpt_path: The checkpoint; `last` is the newest one of --run_dir.
        output: The new folder; null: <run_dir>/export-<checkpoint>.
        results: results.json of an evaluation, for the model card.
        push_to_hub: Upload the folder to this id on the hub, as a private model; null: nothing leaves this machine.
        adapter: Write the adapter alone, in peft's format.
    """
    if run_dir is None and ckpt_path == "last":
        raise UserError("Name a checkpoint with --ckpt_path, or a run with --run_dir.")
    from asymgrpo_app.checkpoints.files import read_label, read_state
    from asymgrpo_app.cli.resume import resolve_run
    from asymgrpo_app.policy.loading import check_model_path

    named = SimpleNamespace(run_dir=run_dir, ckpt_path=ckpt_path)
    resolve_run(named, fitting=False, config_names=[])
    checkpoint = Path(named.ckpt_path)
    run_dir = run_dir or checkpoint.parent.parent
    settings = _settings(run_dir / CONFIG_NAME)
    folder = output or run_dir / f"export-{checkpoint.stem}"
    if folder.exists():
        raise UserError(f"--output {folder} exists already: remove it, or choose another folder.")
    check_model_path(f"model.policy in {run_dir / CONFIG_NAME}", settings["model"]["policy"])
    metrics = _metrics(results) if results is not None else {}
    if adapter and read_state(checkpoint).get("lora") is None:
        raise UserError(f"--adapter: {checkpoint} has no adapter, all weights were trained: leave the option out.")
    _write(folder, checkpoint, _card(settings, read_label(checkpoint).step, metrics, adapter=adapter))
    what, kind = ("adapter", "peft") if adapter else ("policy", "Hugging Face")
    say(f"The {what} of {checkpoint} is in {folder} ({kind} format).")
    if push_to_hub:
        say(f"It is on the hub: {_push(folder, push_to_hub)}")


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings = load_yaml(path.read_text(encoding="utf-8"))
        if not isinstance(settings["model"]["policy"], str):  # without it the checkpoint has no base model
            raise TypeError("model.policy is no text")
        _card(settings, 0, {}, adapter=False).text()
    except (OSError, ValueError, TypeError, LookupError, AttributeError, OverflowError, yaml.YAMLError) as error:
        raise UserError(
            f"{path} is no config of a run with model.policy ({one_line(str(error))}). It says what the checkpoint was "
            "trained from; name the run's folder with --run_dir."
        ) from error
    return cast(dict[str, Any], settings)


def _card(settings: Mapping[str, Any], steps: int, results: Mapping[str, str], *, adapter: bool) -> "ModelCard":
    from asymgrpo_app.policy.export import ModelCard

    advantage = settings["model"].get("advantage") or {}
    train = (settings.get("data") or {}).get("train") or {}
    source = str(train.get("class_path", "not known")).rpartition(".")[2]
    arguments = train.get("init_args") or {}
    origin = next((arguments[key] for key in ("path", "name", "task") if key in arguments), None)
    return ModelCard(
        base_model=settings["model"]["policy"],
        method=str(advantage.get("class_path", "AsymGRPO")).rpartition(".")[2],
        settings={
            name: value
            for name, value in (advantage.get("init_args") or {}).items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        },
        data=f"{source} ({origin})" if origin else source,
        steps=steps,
        total_steps=settings.get("steps", 0),
        results=results,
        adapter=adapter,
    )


def _metrics(path: Path) -> dict[str, str]:
    return {
        f"{name}/{metric}": " ".join(shown(metric, estimate))
        for name, result in read_results(path).sets.items()
        for metric, estimate in result.metrics.items()
    }


def _write(folder: Path, checkpoint: Path, card: "ModelCard") -> None:
    from asymgrpo_app.checkpoints.shards import read_whole
    from asymgrpo_app.policy.export import write_export
    from asymgrpo_app.policy.loading import load_policy, load_tokenizer
    from asymgrpo_app.policy.lora_files import load_adapters

    policy, tokenizer = load_policy(card.base_model, "sdpa"), load_tokenizer(card.base_model)
    content = read_whole(checkpoint)
    state = {name.removeprefix(_PREFIX): tensor for name, tensor in content["state_dict"].items() if _PREFIX in name}
    try:
        if (label := content["asymgrpo"].get("lora")) is not None:
            load_adapters(policy, label, state)
        else:
            policy.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"--ckpt_path {checkpoint} does not fit its base model {card.base_model}: {one_line(str(error))}"
        ) from error
    with writing(folder), whole_folder(folder) as part:
        write_export(part, policy, tokenizer, card)


def _push(folder: Path, name: str) -> str:
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(name, private=True, exist_ok=True)
        return str(api.upload_folder(folder_path=folder, repo_id=name))
    except Exception as error:  # the library raises exceptions of many kinds
        raise RunError(f"{folder} is whole, but the hub did not take it as {name}: {one_line(str(error))}") from error
