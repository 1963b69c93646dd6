"""Seeds as pure functions of what is drawn, never of the rank that draws it."""

from hashlib import blake2b


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) that depends on every part and on nothing else.

    The same completion is sampled by any number of ranks and servers, and a resumed run needs no generator state.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def training_seed(run_seed: int, step: int, prompt_index: int, sample: int, replacement: int = 0) -> int:
    """Seed of one training completion.

    `prompt_index` counts the prompts of the step over all ranks; `replacement` is the round of dynamic sampling that
    drew the prompt, 0 for the original one.
    """
    return derive_seed("train", run_seed, step, prompt_index, sample, replacement)


def evaluation_seed(run_seed: int, set_name: str, problem_index: int, sample: int) -> int:
    """Seed of one evaluation completion. Without the step, so that two evaluations can be compared in pairs."""
    return derive_seed("eval", run_seed, set_name, problem_index, sample)
