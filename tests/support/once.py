"""Work that every command does again, done once for all commands of a test process."""

from typing import Any

import pytest

from asymgrpo_app.runtime.compat import attention_of


def once_per_process(patch: pytest.MonkeyPatch) -> None:
    """Build a subcommand's parser once, estimate the memory of the same passes once, and import no vLLM to try it.

    These take most of the time of a short command, and none depends on what was run before.
    """
    from asymgrpo_app.checks import memory
    from asymgrpo_app.cli.parser import RunParser

    patch.setattr(RunParser, "setup_parser", _parser_of_subcommand)
    patch.setattr(memory, "body_memory", _body_memory)
    patch.setattr("asymgrpo_app.runtime.vllm_import.find_spec", lambda name: None)
    patch.setattr("asymgrpo_app.callbacks.rollout.import_vllm", lambda: None)


_PARSERS: dict[str, dict[str, Any]] = {}


def _parser_of_subcommand(cli: Any, *arguments: Any, **named: Any) -> None:
    from lightning.pytorch.cli import LightningCLI

    subcommand = cli.arguments[0] if cli.arguments and cli.arguments[0] in cli.subcommands() else ""
    if subcommand not in _PARSERS:
        before = set(vars(cli))
        LightningCLI.setup_parser(cli, *arguments, **named)
        _PARSERS[subcommand] = {name: value for name, value in vars(cli).items() if name not in before}
    vars(cli).update(_PARSERS[subcommand])


def _body_memory(policy: Any, batch: Any, **named: Any) -> Any:
    from asymgrpo_app.checks.activation_memory import body_memory

    shapes = [tuple(tensor.shape) for tensor in (batch.input_ids, batch.targets, batch.predictors)]
    buckets = None if batch.attention is None else [tuple(bucket.shape) for bucket in batch.attention.buckets]
    held = [(name, weight.dtype, weight.requires_grad) for name, weight in policy.named_parameters()]
    key = f"{policy.config.to_json_string(use_diff=False)} {attention_of(policy)} {held} {shapes} {buckets} {named}"
    if key not in _ESTIMATES:
        _ESTIMATES[key] = body_memory(policy, batch, **named)
    return _ESTIMATES[key]


_ESTIMATES: dict[str, Any] = {}
