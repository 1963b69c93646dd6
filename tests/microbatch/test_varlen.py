"""Packed rows in the form `varlen`: prompts once, completions over their prompt and themselves, without padding."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import varlen as varlen_module
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from asymgrpo_app.microbatch.microbatch import TokenSequence, build, on_device
from asymgrpo_app.microbatch.packing import cut_packed, pack
from asymgrpo_app.policy import packed_attention
from asymgrpo_app.policy.packed_attention import shared_prompt_attention
from tests.support.small_models import families, relative_error, scores, small_config

HEADS, KEY_HEADS, WIDTH = 4, 2, 8
packed_attention.register()
varlen = partial(pack, varlen=True)


def test_runs_are_the_prompts_and_the_completions_with_queries_in_the_order_of_the_row():
    sequences = [TokenSequence([5, 6], [7, 8, 9]), TokenSequence([5, 6], [4]), TokenSequence([3], [2, 1])]
    batch = varlen(sequences, [0, 1, 2])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 3, 2]]
    runs = batch.attention
    assert runs.query_starts.tolist() == [0, 2, 4, 5, 6]  # the completion of one token asks nothing
    assert runs.key_starts.tolist() == [0, 2, 6, 7, 9]
    assert runs.keys.tolist() == [0, 1, 0, 1, 2, 3, 4, 4, 5]
    assert (runs.longest_query, runs.longest_key) == (2, 4)
    assert (type(runs.longest_query), type(runs.longest_key)) == (int, int)
    assert runs.query_starts.dtype == runs.key_starts.dtype == torch.int32
    assert runs.owners.tolist() == [0, 1, 4, 5, 6, 8]
    assert runs.shared_tokens.tolist() == [0, 1, 4]
    assert runs.copies.tolist() == [0, 2, 1, 3, 6, 7]
    assert runs.num_copies.tolist() == [2, 2, 2]


def random_group(generator: torch.Generator) -> list[TokenSequence]:
    """One to three prompts of 1 to 24 tokens with one to five completions of 1 to 24."""

    def number(most: int) -> int:
        return int(torch.randint(1, most + 1, (), generator=generator))

    prompts = [[place] * number(24) for place in range(number(3))]
    return [TokenSequence(prompt, [9] * number(24)) for prompt in prompts for _ in range(number(5))]


def padded_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sequences: list[TokenSequence]
) -> torch.Tensor:
    """Attention of a packed row from whole sequences, each with a prompt of its own, padded on the right."""
    starts, places, row = {}, [], 0
    for sequence in sequences:
        prompt = tuple(sequence.prompt)
        if prompt not in starts:
            starts[prompt] = row
            row += len(prompt)
        completion = range(row, row + len(sequence.completion) - 1)
        places.append(torch.tensor([*range(starts[prompt], starts[prompt] + len(prompt)), *completion]))
        row += len(completion)
    index = pad_sequence(places, batch_first=True)
    q, k, v = (rows[index].transpose(1, 2) for rows in (query, key, value))
    result = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)
    # Of a shared token every copy has the same result: the last one that is written counts.
    first = torch.zeros(row, dtype=torch.int64)
    for number, own in enumerate(places):
        first[own] = number * index.shape[1] + torch.arange(len(own))
    return result.flatten(0, 1)[first]


def values_and_gradients(attention, rows, weights):
    leaves = [row.clone().requires_grad_() for row in rows]
    result = attention(*leaves)
    (result * weights).sum().backward()
    return [result.detach(), *(leaf.grad for leaf in leaves)]


def test_values_and_gradients_of_random_groups_are_those_of_padded_sequences():
    generator = torch.Generator().manual_seed(0)
    largest = torch.zeros(4)
    for _ in range(200):
        sequences = random_group(generator)
        runs = varlen(sequences, list(range(len(sequences)))).attention
        sizes = [len(runs.owners), HEADS, WIDTH]
        rows = [torch.randn(*sizes, generator=generator)]
        rows += [torch.randn(sizes[0], KEY_HEADS, WIDTH, generator=generator) for _ in range(2)]
        weights = torch.randn(*sizes, generator=generator) / 4
        reference = partial(shared_prompt_attention, runs=runs, scale=None, kernel="reference")
        own = values_and_gradients(reference, rows, weights)
        expected = values_and_gradients(partial(padded_attention, sequences=sequences), rows, weights)
        found = [((a - b).abs() / (1 + b.abs())).max() for a, b in zip(own, expected, strict=True)]
        largest = torch.maximum(largest, torch.stack(found))
    assert float(largest.max()) < 1e-6, f"values, and gradients by query, key and value: {largest.tolist()}"


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "phi3"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_gives_the_same_as_on_padded_sequences(architecture, checkpointing):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_config(architecture), attn_implementation=packed_attention.NAME)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    sequences = families(1)
    (members,) = cut_packed(sequences, 10**6)
    for own, expected in zip(*(scores(model, form(sequences, members)) for form in (varlen, build)), strict=True):
        assert relative_error(own, expected) < 3e-6


def test_a_tokens_copies_are_added_up_in_float32_and_in_one_order():
    sequences = [TokenSequence([1] * 20, [2] * 30) for _ in range(64)]
    runs = varlen(sequences, list(range(64))).attention
    tokens = torch.zeros(len(runs.owners), KEY_HEADS, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    gradient = torch.randn(len(runs.keys), KEY_HEADS, WIDTH, generator=torch.Generator().manual_seed(1))
    gradient = gradient.bfloat16()

    def summed() -> torch.Tensor:
        (own,) = torch.autograd.grad(packed_attention._SpreadKeys.apply(tokens, runs), tokens, gradient)
        return own

    exact = torch.zeros(tokens.shape, dtype=torch.float64).index_add_(0, runs.keys, gradient.double())
    assert torch.equal(summed(), exact.bfloat16())  # rounded once, at the end
    assert all(torch.equal(summed(), summed()) for _ in range(5))


def test_torchs_kernel_gets_what_it_takes_and_gives_gradients(monkeypatch):
    """On the meta device, where torch checks the call and gives shapes; nothing is computed."""
    sequences = families(2)
    runs = varlen(sequences, list(range(len(sequences)))).attention
    given = {}
    real = varlen_module.varlen_attn
    monkeypatch.setattr(varlen_module, "varlen_attn", lambda *a, **named: given.update(named, a=a) or real(*a, **named))
    for name, part in vars(runs).items():
        setattr(runs, name, part.to("meta") if isinstance(part, torch.Tensor) else part)
    rows = [
        torch.empty(len(runs.owners), heads, WIDTH, dtype=torch.bfloat16, device="meta", requires_grad=True)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    ]
    result = shared_prompt_attention(*rows, runs, scale=0.3, kernel="varlen")
    result.sum().backward()
    assert (result.shape, result.dtype) == (rows[0].shape, torch.bfloat16)
    assert all((row.grad.shape, row.grad.dtype) == (row.shape, row.dtype) for row in rows)
    assert (given["window_size"], given["enable_gqa"], given["scale"]) == ((-1, 0), True, 0.3)
    query, key, value, query_starts, key_starts, longest_query, longest_key = given["a"]
    assert len(query_starts) == len(key_starts)
    assert len(key) == len(value) == len(runs.keys)
    assert (longest_query, longest_key) == (runs.longest_query, runs.longest_key)
    assert query.shape == rows[0].shape


@pytest.mark.parametrize(("dtype", "kernel"), [(torch.bfloat16, "varlen"), (torch.float32, "reference")])
def test_on_a_gpu_attention_takes_the_kernel_with_all_it_needs_on_the_gpu(dtype, kernel, monkeypatch):
    """With fake tensors, which know their device: an operation on tensors of two devices is refused."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(packed_attention, "_reference_kernel", lambda query, *_: query)
    sequences, gpu, calls = families(3), torch.device("cuda:0"), []
    batch = varlen(sequences, list(range(len(sequences))))
    real = varlen_module.varlen_attn
    monkeypatch.setattr(varlen_module, "varlen_attn", lambda *a, **named: calls.append(a) or real(*a, **named))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        runs = on_device(batch, gpu).attention
        rows = [
            torch.empty(1, len(batch.attention.owners), heads, WIDTH, dtype=dtype, device=gpu).transpose(1, 2)
            for heads in (HEADS, KEY_HEADS, KEY_HEADS)
        ]
        result, _ = packed_attention.packed_attention(torch.nn.Module(), *rows, None, runs)
        gradient = packed_attention._SpreadKeys.backward(
            SimpleNamespace(runs=runs), torch.empty(len(batch.attention.keys), KEY_HEADS, WIDTH, device=gpu)
        )
    assert (result.device, result.dtype, result.shape) == (gpu, dtype, rows[0].transpose(1, 2).shape)
    assert (gradient[0].device, gradient[0].shape) == (gpu, (len(batch.attention.owners), KEY_HEADS, WIDTH))
    assert len(calls) == (kernel == "varlen")
    for call in calls:
        assert {one.device for one in call if isinstance(one, torch.Tensor)} == {gpu}
        assert {one.dtype for one in call[:3]} == {dtype}


@pytest.mark.parametrize(
    ("changes", "form", "sentence"),
    [
        ({}, "varlen", None),
        ({"device": "cpu"}, "buckets", None),
        ({"dtype": torch.float32}, "buckets", None),
        ({"flash": False}, "buckets", "this build of torch has no flash attention"),
        ({"capability": (7, 5)}, "buckets", "compute capability 8.0 or more"),
        ({"head_size": 12}, "buckets", "multiple of 8 up to 256, and the policy's have 12"),
        ({"head_size": 512}, "buckets", "multiple of 8 up to 256, and the policy's have 512"),
    ],
)
def test_where_the_kernel_runs_and_what_is_said_once_where_it_does_not(changes, form, sentence, monkeypatch, capsys):
    packed_attention._say_once.cache_clear()
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: changes.get("flash", True))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: changes.get("capability", (8, 0)))
    device, dtype = torch.device(changes.get("device", "cuda")), changes.get("dtype", torch.bfloat16)
    taken = [packed_attention.takes_varlen(device, dtype, changes.get("head_size", 128)) for _ in range(2)]
    assert taken == [form == "varlen"] * 2
    said = capsys.readouterr().out
    assert said.count("Attention over packed rows takes padded buckets") == (sentence is not None)
    assert sentence is None or sentence in said
