"""Small models of many architectures, sequences for them, and what a forward and a backward pass gives."""

import torch
from transformers import AutoConfig

from asymgrpo_app.microbatch.microbatch import TokenSequence
from asymgrpo_app.policy.loading import token_logprobs


def small_config(architecture: str):
    config = AutoConfig.for_model(
        architecture,
        vocab_size=97,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    if architecture == "mistral":
        config.sliding_window = None
    return config


def families(seed: int, prompts: int = 3, group: int = 4) -> list[TokenSequence]:
    """Completions of 1 to 20 tokens in groups that share a prompt of 1 to 9."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(length: int) -> list[int]:
        return torch.randint(3, 97, (length,), generator=generator).tolist()

    def number(most: int) -> int:
        return int(torch.randint(1, most + 1, (), generator=generator))

    return [
        TokenSequence(prompt, tokens(number(20)))
        for prompt in (tokens(number(9)) for _ in range(prompts))
        for _ in range(group)
    ]


def scores(model, batch):
    """Log-probabilities, entropies, and the gradient of a weighted sum of both."""
    model.zero_grad()
    logprobs, entropy = token_logprobs(model, batch, temperature=0.8, entropy_grad=True)
    weights = torch.linspace(-1, 2, len(logprobs))
    ((logprobs + 0.1 * entropy) * weights).sum().backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return logprobs.detach(), entropy.detach(), torch.cat(gradients)


def relative_error(a, b) -> float:
    return float((a - b).norm() / b.norm())
