"""Loading of a causal language model, and its log-probabilities of completion tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from asymgrpo_app.errors import UserError
from asymgrpo_app.microbatch.microbatch import Form, MicroBatch
from asymgrpo_app.policy import packed_attention
from asymgrpo_app.policy.head import completion_logprobs
from asymgrpo_app.policy.lora import is_adapter, merged, plain_name
from asymgrpo_app.policy.packed_attention import can_pack, takes_varlen
from asymgrpo_app.policy.weight_files import not_tied
from asymgrpo_app.runtime.compat import attention_of, block_names, came_with_adapter
from asymgrpo_app.runtime.hub import could_be_hub_id, no_folder, require_on_hub

if TYPE_CHECKING:  # transformers takes seconds to import, which a wrong key should not wait for
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

AttentionImplementation = Literal["sdpa", "eager", "flash_attention_2"]

# Models that change the logits after the head; the chunked head would leave that out.
_LOGIT_CHANGES = ("final_logit_softcapping", "logits_scaling", "logit_scale")


def check_model_path(key: str, value: str) -> None:
    """Refuse a model folder that is not there or is no Hugging Face checkpoint, without opening any weights.

    Raises:
        UserError: There is no such folder, and no such model on the hub or in its cache; or the folder has no
            `config.json`, or holds an adapter.
    """
    folder = Path(value)
    if (folder / "adapter_config.json").is_file():
        raise UserError(_holds_adapter(key, value))
    if not folder.exists():
        if not could_be_hub_id(value):
            raise UserError(f"{key}: {no_folder(value)}.")
        require_on_hub(key, value, "model", cached=isinstance(_cached(value), str))
    if folder.exists() and not (folder / "config.json").is_file():
        raise UserError(f"{key}: {value} is not a Hugging Face checkpoint folder, it has no config.json.")


def _holds_adapter(key: str, value: str) -> str:
    return (
        f"{key}: {value} holds an adapter (adapter_config.json), which is no policy: merge it into its model first "
        "(asymgrpo export, or peft's merge_and_unload), or name the model alone."
    )


def _cached(name: str) -> Any:
    with contextlib.suppress(HFValidationError):
        return try_to_load_from_cache(name, "config.json")
    return None


def load_config(path: str) -> Any:
    """The architecture's configuration.

    Raises:
        UserError: It cannot be loaded.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # each architecture's config checks itself in its own way
        raise UserError(f"model.policy: {path} cannot be loaded: {_sentence(error)}") from error


def vocabulary_size(path: str) -> int:
    """Number of token ids that a model knows.

    Raises:
        UserError: Its configuration cannot be loaded.
    """
    return int(load_config(path).get_text_config().vocab_size)


def load_policy(path: str, attention: AttentionImplementation) -> PreTrainedModel:
    """A causal language model with float32 weights (lower compute types come from `trainer.precision`).

    Turns cuDNN's attention off in this process: it makes a plan for every new shape, which takes tens of milliseconds,
    and hardly two micro-batches have the same.

    Raises:
        UserError: It cannot be loaded, or its logits are more than a linear head.
    """
    from transformers import AutoModelForCausalLM

    torch.backends.cuda.enable_cudnn_sdp(False)
    config = load_config(path)
    _check_head(path, config)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            attn_implementation=attention_name(config, attention),
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise UserError(f"model.policy: {path} cannot be loaded: {_sentence(error)}") from error
    model: PreTrainedModel = loaded[0]
    if came_with_adapter(model):  # transformers follows an adapter on the hub to its model
        raise UserError(_holds_adapter("model.policy", path))
    if missing := sorted(loaded[1]["missing_keys"]):  # they would be random numbers
        raise UserError(f"model.policy: {path} lacks {len(missing)} weights, {missing[0]} among them.")
    for head, embedding in untied(model).items():
        raise UserError(not_tied("model.policy", head, path, embedding))
    _without_dropout(model)
    return model


def untied(model: PreTrainedModel) -> dict[str, str]:
    """The weights that a model's config ties, and its checkpoint does not, so that transformers left them apart."""
    named = model.get_expanded_tied_weights_keys(all_submodels=True)
    return {name: source for name, source in named.items() if name not in model.all_tied_weights_keys}


def _without_dropout(model: nn.Module) -> None:
    """Turn dropout off: it would make the trainer's log-probabilities differ from the sampler's."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Attention layers have no module for it, but a number: `attention_dropout`.
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def empty_policy(config: Any) -> PreTrainedModel:
    """A model on the meta device: shapes and names alone, no data."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def check_attention(attention: AttentionImplementation, *, device: str, precision: str) -> None:
    """Refuse flash attention where it cannot run.

    Args:
        attention: Value of `model.attention`.
        device: The kind of device that the policy is trained on.
        precision: Value of `trainer.precision`.

    Raises:
        UserError: There is no GPU, no computation in 16 bits, or no flash-attn.
    """
    if attention != "flash_attention_2":
        return
    instead = "leave model.attention at sdpa, which computes shared prompts once"
    if device != "cuda" or "bf16" not in precision:
        raise UserError(
            f"model.attention flash_attention_2 takes a GPU and trainer.precision bf16-mixed, got {device} and "
            f"{precision}: {instead}."
        )
    if find_spec("flash_attn") is None:
        raise UserError(f"model.attention flash_attention_2 needs flash-attn, which is not installed: {instead}.")


def attention_name(config: Any, attention: AttentionImplementation) -> str:
    """Name in transformers of the attention implementation for a model of this configuration."""
    if attention != "sdpa" or not can_pack(config):
        return attention
    packed_attention.register()
    return packed_attention.NAME


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to a checkpoint.

    Raises:
        UserError: It cannot be loaded, or it has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"The tokenizer of {path} cannot be loaded: {_sentence(error)}") from error
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_tokens):  # made up where the files are missing
        raise UserError(f"The tokenizer of {path} has no tokens: its files are missing.")
    if tokenizer.eos_token_id is None:
        raise UserError(f"The tokenizer of {path} has no end-of-sequence token, so completions could not end.")
    return tokenizer


def _check_head(path: str, config: Any) -> None:
    for name in _LOGIT_CHANGES:
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise UserError(
                f"model.policy: {path} sets {name}, which is not supported: its logits are not a plain head."
            )


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def named_weights(policy: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Every weight once, by its Hugging Face name (a tied head only as the embedding), with adapters merged into it."""
    parameters = ((name, parameter.detach()) for name, parameter in policy.named_parameters())
    return merged(parameters, policy)


def linear_weights(policy: PreTrainedModel) -> tuple[list[str], str | None]:
    """Names of the weights of linear layers, and that of the embedding if the output head is tied to it."""
    head: Any = policy.get_output_embeddings()
    embedding: Any = policy.get_input_embeddings()
    tied = head is not None and head.weight is embedding.weight
    linear = [
        f"{plain_name(name)}.weight"
        for name, module in policy.named_modules()
        if isinstance(module, nn.Linear) and not (tied and module is head) and not is_adapter(name)
    ]
    names = [f"{name}.weight" for name, module in policy.named_modules() if module is embedding]
    return linear, names[0] if tied else None


def stop_token_ids(policy_path: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end a completion: the tokenizer's end token and those that the checkpoint's configuration names.

    Chat models often name two (`<|im_end|>` and `<|endoftext|>`), the second in generation_config.json alone.
    """
    from transformers import AutoConfig, GenerationConfig

    named: set[int] = {int(tokenizer.eos_token_id)}
    sources: list[Any] = []
    with contextlib.suppress(OSError, ValueError):  # a tokenizer may lie in a folder of its own
        sources.append(AutoConfig.from_pretrained(policy_path, trust_remote_code=False))
    with contextlib.suppress(OSError):  # many base models have no generation_config.json
        sources.append(GenerationConfig.from_pretrained(policy_path))
    for source in sources:
        configured = getattr(source, "eos_token_id", None)
        named.update(configured if isinstance(configured, list) else [] if configured is None else [configured])
    return tuple(sorted(named))


def transformer_blocks(policy: PreTrainedModel) -> list[nn.Module]:
    """The transformer blocks of a model, in order; none if its architecture does not say which they are."""
    names = block_names(policy)
    return [module for module in policy.modules() if type(module).__name__ in names]


def packs(policy: PreTrainedModel) -> bool:
    """Whether the model takes packed micro-batches (`asymgrpo_app.microbatch.packing`)."""
    return attention_of(policy) == packed_attention.NAME


def micro_batch_form(policy: PreTrainedModel) -> Form:
    """How sequences lie in the policy's micro-batches, under the autocast of the moment."""
    if not packs(policy):
        return "padded"
    weight = next(policy.parameters())
    device = weight.device
    autocast = torch.is_autocast_enabled(device.type)
    text = policy.config.get_text_config()
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    dtype = torch.get_autocast_dtype(device.type) if autocast else weight.dtype
    return "varlen" if takes_varlen(device, dtype, head_size) else "buckets"


def attention_inputs(batch: MicroBatch) -> dict[str, Any]:
    """Keyword arguments of the model's body that tell it where sequences are: attention mask, or packing."""
    if batch.attention is None:
        return {"attention_mask": batch.attention_mask}
    # Given a mask of four dimensions, transformers makes none of its own, which would be [N, N]. It is not read.
    mask = torch.empty(1, 1, 1, 1, device=batch.input_ids.device)
    return {"attention_mask": mask, "position_ids": batch.position_ids, "packing": batch.attention}


def token_logprobs(
    policy: PreTrainedModel, batch: MicroBatch, *, temperature: float, entropy_grad: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probability and full-vocabulary entropy of each completion token, at the sampling temperature.

    Args:
        policy: The model; its head runs on completion tokens alone.
        batch: B sequences with T completion tokens; packed ones only where `packs` says so.
        temperature: Divides the logits once; for greedy sampling (0) the plain distribution is used.
        entropy_grad: Whether the entropy carries a gradient.

    Returns:
        Two float32 tensors [T]: log-probabilities and entropies in nats.
    """
    body = getattr(policy, policy.base_model_prefix)
    hidden = body(input_ids=batch.input_ids, use_cache=False, **attention_inputs(batch)).last_hidden_state
    head: Any = policy.get_output_embeddings()
    return completion_logprobs(
        # A packed prompt's last token predicts in several completions. On CPU the backward pass of `index_select` adds
        # these up in order; that of an index in brackets does so in whatever order its threads come.
        hidden.flatten(0, 1).index_select(0, batch.predictors),
        head.weight,
        head.bias,
        batch.targets,
        temperature=temperature or 1.0,
        entropy_grad=entropy_grad,
    )
