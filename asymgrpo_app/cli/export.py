"""`asymgrpo export`: a checkpoint as a Hugging Face folder."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from asymgrpo_app.checkpoints.files import read_state
from asymgrpo_app.checkpoints.folder import check_whole, newest_whole
from asymgrpo_app.checkpoints.run_folder import CONFIG_NAME
from asymgrpo_app.checkpoints.shards import read_whole
from asymgrpo_app.cli.command_parser import CommandParser
from asymgrpo_app.errors import ExitCode, RunError, UserError, one_line
from asymgrpo_app.evaluation.results import read_results, shown
from asymgrpo_app.policy.export import ModelCard, write_export
from asymgrpo_app.policy.loading import check_model_path, load_policy, load_tokenizer
from asymgrpo_app.policy.lora_files import load_adapters
from asymgrpo_app.runtime.console import quiet_libraries, say

_PREFIX = "policy."


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit code.

    Raises:
        UserError: Bad input; raised before a model is loaded where possible.
        RunError: The folder cannot be written, or the hub does not take it.
    """
    options = _parser().parse_args(list(arguments))
    quiet_libraries()
    checkpoint = _checkpoint(options.run_dir, options.ckpt_path)
    run_dir = Path(options.run_dir) if options.run_dir else checkpoint.parent.parent
    settings = _settings(run_dir)
    folder = Path(options.output) if options.output else run_dir / f"export-{checkpoint.stem}"
    if folder.exists():
        raise UserError(f"--output {folder} exists already: remove it, or choose another folder.")
    base = settings["model"]["policy"]
    check_model_path(f"model.policy in {run_dir / CONFIG_NAME}", base)
    results = _results(options.results)
    step = check_whole(checkpoint).step
    if options.adapter and read_state(checkpoint).get("lora") is None:
        raise UserError(f"--adapter: {checkpoint} has no adapter, all weights were trained: leave the option out.")
    card = _card(settings, step, results, adapter=options.adapter)
    _export(folder, checkpoint, card)
    what = "adapter" if options.adapter else "policy"
    say(f"The {what} of {checkpoint} is in {folder} ({'peft' if options.adapter else 'Hugging Face'} format).")
    if options.push_to_hub:
        say(f"It is on the hub: {_push(folder, options.push_to_hub)}")
    return ExitCode.OK


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="asymgrpo export",
        description="Turn a checkpoint into a folder in Hugging Face format: weights, tokenizer with its chat "
        "template, generation config and a model card. Adapters of a run with model.lora are merged into the weights.",
    )
    parser.add_argument("--run_dir", type=str | None, default=None, help="Folder of the run.")
    parser.add_argument(
        "--ckpt_path", type=str, default="last", help="The checkpoint; `last` is the newest one of --run_dir."
    )
    parser.add_argument(
        "--output", type=str | None, default=None, help="The new folder. Default: <run_dir>/export-<checkpoint>."
    )
    parser.add_argument(
        "--results", type=str | None, default=None, help="results.json of an evaluation, for the model card."
    )
    parser.add_argument(
        "--adapter", action="store_true", help="Of a run with model.lora, write the adapter alone, in peft's format."
    )
    parser.add_argument(
        "--push_to_hub",
        type=str | None,
        default=None,
        help="Upload the folder to this id on the hub, as a private model. Without it nothing leaves this machine.",
    )
    return parser


def _checkpoint(run_dir: str | None, path: str) -> Path:
    if path != "last":
        check_whole(path)
        return Path(path)
    if run_dir is None:
        raise UserError("Name a checkpoint with --ckpt_path, or a run with --run_dir.")
    newest, skipped = newest_whole(run_dir)
    for line in skipped:
        say(f"Skipped: {line}.")
    if newest is None:
        raise UserError(f"--run_dir {run_dir}: there is no checkpoint in it.")
    return newest


def _settings(run_dir: Path) -> dict[str, Any]:
    path = run_dir / CONFIG_NAME
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"{path}: {one_line(str(error))}. It says what the checkpoint was trained from; name the run's folder with "
            "--run_dir."
        ) from error
    if (
        not isinstance(settings, dict)
        or not isinstance(settings.get("model"), dict)
        or "policy" not in settings["model"]
    ):
        raise UserError(f"{path} is no config of a run: it has no model.policy.")
    return settings


def _card(settings: Mapping[str, Any], steps: int, results: Mapping[str, str], *, adapter: bool) -> ModelCard:
    advantage = settings["model"].get("advantage") or {}
    numbers = {
        name: value
        for name, value in (advantage.get("init_args") or {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    train = (settings.get("data") or {}).get("train") or {}
    source = str(train.get("class_path", "not known")).rpartition(".")[2]
    origin = next(
        (train["init_args"][key] for key in ("path", "name", "task") if key in train.get("init_args", {})), None
    )
    return ModelCard(
        base_model=settings["model"]["policy"],
        method=str(advantage.get("class_path", "AsymGRPO")).rpartition(".")[2],
        settings=numbers,
        data=f"{source} ({origin})" if origin else source,
        steps=steps,
        results=results,
        adapter=adapter,
    )


def _results(path: str | None) -> dict[str, str]:
    if path is None:
        return {}
    content = read_results(Path(path))
    return {
        f"{name}/{metric}": " ".join(shown(metric, estimate))
        for name, result in content.sets.items()
        for metric, estimate in result.metrics.items()
    }


def _export(folder: Path, checkpoint: Path, card: ModelCard) -> None:
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
    part = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        write_export(part, policy, tokenizer, card)
        part.rename(folder)  # the folder has its name only once it is whole
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise RunError(f"{folder} cannot be written: {error.strerror or error}.") from error


def _push(folder: Path, name: str) -> str:
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(name, private=True, exist_ok=True)
        return str(api.upload_folder(folder_path=folder, repo_id=name))
    except Exception as error:  # the library raises exceptions of many kinds
        raise RunError(f"{folder} is whole, but the hub did not take it as {name}: {one_line(str(error))}") from error
