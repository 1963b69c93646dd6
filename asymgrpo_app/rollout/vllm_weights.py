"""Functions that run inside vLLM's worker: loading of weights in place, and their digest."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from asymgrpo_app.rollout.digest import WeightDigest, bit_sum, columns


def reload_weights(worker: Any, named: Iterable[tuple[str, Tensor]]) -> None:
    """Replace the weights of vLLM's model in place; `named` has every weight once, by its Hugging Face name."""
    worker.reload_weights(weights_iterator=iter(named))
    head = getattr(worker.model_runner.get_model(), "lm_head", None)
    method = getattr(head, "quant_method", None)
    if method is not None and not torch.cuda.is_available():
        # On CPU the head multiplies with a repacked copy of its weight. A head tied to the embedding has no weight of
        # its own in the list, so the reload leaves that copy as it was: sampling from old weights. Repack it.
        method.process_weights_after_loading(head)


def read_digest(worker: Any, version: int) -> WeightDigest:
    """The digest of the weights that the next token will be sampled with (see `policy_digest`)."""
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    digest = WeightDigest(0, 0)
    layers: set[int] = set()
    model = worker.model_runner.get_model()
    config = worker.model_runner.vllm_config.model_config
    # A head of another type than the model's multiplies with its weight, and not with a repacked copy of it.
    plain_head = config.head_dtype != config.dtype
    for module in model.modules():
        if not isinstance(module, LinearBase | ParallelLMHead):
            continue
        is_head = isinstance(module, ParallelLMHead)
        inputs = module.embedding_dim if is_head else module.input_size
        chosen = columns(version, inputs)
        read = module.weight[:, chosen] if is_head and plain_head else _columns_of(module, chosen, inputs)
        digest += WeightDigest(bit_sum(read), 0)
        layers.add(id(module.weight))
    head = getattr(model, "lm_head", None)
    for name, parameter in model.named_parameters():
        # A tied head shares its parameter with the embedding, which is read in full.
        tied = head is not None and parameter is head.weight and not name.startswith("lm_head")
        if tied or id(parameter) not in layers:
            digest += WeightDigest(0, bit_sum(parameter))
    return digest


def _columns_of(module: Any, chosen: list[int], inputs: int) -> Tensor:
    """Columns of a layer's weight matrix, [out, len(chosen)] in some order."""
    weight: Tensor = module.weight
    if not hasattr(module, "cpu_linear"):
        return weight[:, chosen]
    units = torch.zeros(len(chosen), inputs, dtype=weight.dtype)
    units[torch.arange(len(chosen)), chosen] = 1
    columns_read: Tensor = module.cpu_linear(units, weight, None)
    return columns_read
