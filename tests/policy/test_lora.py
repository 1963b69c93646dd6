"""Adapters: where they go, what they add, what is trained, and what the sampler and the disk get of them."""

import weakref
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from asymgrpo_app.errors import UserError
from asymgrpo_app.policy.export import ModelCard, write_export
from asymgrpo_app.policy.loading import (
    check_model_path,
    empty_policy,
    linear_weights,
    load_policy,
    load_tokenizer,
    named_weights,
)
from asymgrpo_app.policy.lora import (
    LoRAConfig,
    adapted_layers,
    adapters_off,
    add_adapters,
    first_values,
    hold_in_bfloat16,
    is_adapter,
    merged,
    summary,
    target_layers,
)
from asymgrpo_app.policy.lora_files import fingerprint
from asymgrpo_app.rollout.digest import policy_digest
from asymgrpo_app.rollout.server.transfer import FolderTransfer
from asymgrpo_app.rollout.transformers_engine import TransformersEngine, TransformersEngineConfig
from asymgrpo_app.rollout.types import SampleRequest
from tests.support.adapters import TEXT, adapted
from tests.support.engine_contract import BASE, SETTINGS, gaps

KINDS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def tiny(*, tied: bool = True, seed: int = 0) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=19,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        attention_bias=True,
        tie_word_embeddings=tied,
    )
    return Qwen3ForCausalLM(config).eval()


TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])


def logits(policy) -> torch.Tensor:
    return policy(TOKENS).logits


# ---- where they go ----


def test_adapters_go_to_every_linear_layer_of_the_blocks_and_not_to_the_head():
    for tied in (True, False):
        layers = target_layers(tiny(tied=tied), LoRAConfig(), "tiny")
        assert len(layers) == 2 * 7
        assert {name.rpartition(".")[2] for name in layers} == KINDS


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["q_proj", "v_proj"], 4),
        (["self_attn.o_proj"], 2),
        (["layers.1.mlp.up_proj"], 1),
        (["model.layers.0.mlp.up_proj", "up_proj"], 2),
    ],
)
def test_adapters_go_where_they_are_asked_for(targets, expected):
    policy = tiny()
    config = LoRAConfig(rank=2, target_modules=targets)
    assert len(target_layers(policy, config, "tiny")) == expected
    add_adapters(policy, config, "tiny")
    assert len(adapted_layers(policy)) == expected


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "proj", "q_projj", "", "layers.2.mlp.up_proj", "norm"])
def test_what_is_no_linear_layer_of_the_blocks_is_refused_by_name(target):
    with pytest.raises(UserError, match=r"model\.lora\.target_modules") as error:
        target_layers(tiny(tied=False), LoRAConfig(target_modules=["q_proj", target]), "the/policy")
    assert repr(target) in str(error.value)
    assert ", ".join(sorted(KINDS)) in str(error.value)


def test_the_user_is_told_what_is_trained():
    policy = empty_policy(tiny().config)
    # 2 layers: q 16+16, k and v 16+8, o 16+16, gate and up 16+24, down 24+16
    trained = 4 * 2 * (32 + 24 + 24 + 32 + 40 + 40 + 40)
    share = trained / sum(own.numel() for own in tiny().parameters())
    told = summary(policy, LoRAConfig(rank=4, alpha=8.0), "tiny")
    assert f"LoRA of rank 4, scale 2, on 14 linear layers ({', '.join(sorted(KINDS))}): {trained:,} trained" in told
    assert f"{share:.2%}" in told


@pytest.mark.parametrize(("rslora", "scale"), [(False, 32 / 16), (True, 32 / 4)])
def test_the_scale_is_pefts(rslora, scale):
    config = LoRAConfig(rslora=rslora)
    assert config.scale == scale
    assert {layer.scaling["default"] for layer in adapted_layers(adapted(tiny(), config)).values()} == {scale}


# ---- what they compute ----


def test_a_run_begins_at_the_policy_as_it_came():
    policy = adapted(tiny(), noise=0.0)
    assert torch.equal(logits(policy), logits(tiny()))
    plain = dict(tiny().named_parameters())
    weights = dict(named_weights(policy))
    assert weights.keys() == plain.keys()
    assert all(torch.equal(weights[name], plain[name]) for name in plain)


def test_first_values_are_a_function_of_the_runs_seed_and_the_layer_alone():
    def values(seed: int, disturb: bool = False) -> dict[str, torch.Tensor]:
        policy = tiny()
        torch.manual_seed(seed + disturb)
        before = torch.random.get_rng_state()
        add_adapters(policy, LoRAConfig(rank=3), "tiny")
        first_values(policy, seed)
        assert torch.equal(torch.random.get_rng_state(), before)  # nothing is taken from the run's own generator
        return {name: own.detach() for name, own in policy.named_parameters() if is_adapter(name)}

    first, again, other = values(0), values(0, disturb=True), values(1)
    for name, value in first.items():
        assert torch.equal(value, again[name])
        assert value.dtype == torch.float32
        if "lora_B" in name:
            assert not value.any()
        else:
            bound = value.shape[1] ** -0.5
            assert not torch.equal(value, other[name])
            assert 0.8 * bound < value.abs().max() <= bound
            assert float(value.std()) == pytest.approx(bound / 3**0.5, rel=0.25)
    downs = [value for name, value in first.items() if "q_proj.lora_A" in name]
    assert not torch.equal(*downs)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rslora", [True, False])
def test_merged_weights_compute_what_adapters_compute(tied, rslora):
    policy = adapted(tiny(tied=tied), LoRAConfig(rank=3, rslora=rslora))
    plain = tiny(tied=tied, seed=1)
    plain.load_state_dict(dict(named_weights(policy)), strict=not tied)
    assert (logits(plain) - logits(policy)).abs().max() < 1e-5
    assert (logits(policy) - logits(tiny(tied=tied))).abs().max() > 1e-2


def test_merging_takes_one_layer_at_a_time_and_changes_nothing():
    policy = adapted(tiny())
    before = {name: own.clone() for name, own in policy.state_dict().items()}
    names, asked = [name for name, _ in policy.named_parameters()], []

    def named():
        for name, parameter in policy.named_parameters():
            asked.append(name)
            yield name, parameter.detach()

    earlier = None
    for name, weight in merged(named(), policy):
        layer = name.rpartition(".")[0]
        last = max(place for place, own in enumerate(names) if own.startswith(f"{layer}."))
        assert len(asked) <= last + 2  # with the one that shows that the layer is complete
        assert earlier is None or earlier() is None  # nobody keeps a weight that was made before
        earlier = weakref.ref(weight) if layer in adapted_layers(policy) and name.endswith("weight") else None
        del weight
    assert asked == names
    assert all(torch.equal(own, before[name]) for name, own in policy.state_dict().items())


def test_only_adapters_have_a_gradient_and_it_is_that_of_the_merged_weight():
    """With W' = W + s B A and G = dL/dW': dL/dB = s G A^T and dL/dA = s B^T G."""
    torch.manual_seed(0)
    policy = adapted(tiny().double(), LoRAConfig(rank=3, alpha=5.0))
    for name, own in policy.named_parameters():
        if is_adapter(name):
            own.data = own.data.double()
    logits(policy).log_softmax(-1)[..., 3].sum().backward()
    plain = tiny().double()
    plain.load_state_dict(dict(named_weights(policy)), strict=False)
    logits(plain).log_softmax(-1)[..., 3].sum().backward()
    gradients = {name: own.grad for name, own in plain.named_parameters()}
    parameters = dict(policy.named_parameters())
    assert {name for name, own in parameters.items() if own.grad is not None} == set(filter(is_adapter, parameters))
    for layer in adapted_layers(policy):
        down, up = (parameters[f"{layer}.lora_{part}.default.weight"] for part in "AB")
        whole = 5 / 3 * gradients[f"{layer}.weight"]
        torch.testing.assert_close(up.grad, whole @ down.detach().T, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(down.grad, up.detach().T @ whole, rtol=1e-9, atol=1e-12)


def test_with_adapters_off_the_policy_is_the_one_it_came_as_and_then_trains_on():
    policy, base = adapted(tiny()), tiny()
    on = logits(policy)
    with adapters_off(policy), torch.no_grad():  # as the reference, between a forward and its backward pass
        assert torch.equal(logits(policy), logits(base))
    assert torch.equal(logits(policy), on)
    on.sum().backward()
    undisturbed = adapted(tiny())
    logits(undisturbed).sum().backward()
    expected = {name: own.grad for name, own in undisturbed.named_parameters()}
    for name, own in policy.named_parameters():
        assert own.requires_grad == is_adapter(name)
        assert (own.grad is None) == (expected[name] is None)
        assert own.grad is None or torch.equal(own.grad, expected[name])


def test_a_policy_without_adapters_has_nothing_to_turn_off_or_to_merge():
    policy = tiny()
    with adapters_off(policy):
        assert torch.equal(logits(policy), logits(tiny()))
    assert adapted_layers(policy) == {}
    assert [name for name, _ in named_weights(policy)] == [name for name, _ in policy.named_parameters()]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("targets", [None, ["q_proj"]])
def test_frozen_weights_in_bfloat16_change_no_bit_under_autocast(tied, targets):
    config = LoRAConfig(rank=3, target_modules=targets)
    full, half = adapted(tiny(tied=tied), config), adapted(tiny(tied=tied), config)
    hold_in_bfloat16(half)
    results = []
    for policy in (full, half):
        with torch.autocast("cpu", torch.bfloat16):
            own = logits(policy).float()
        own.log_softmax(-1)[..., 3].sum().backward()
        results.append((own, {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1].keys() == results[1][1].keys()
    assert all(torch.equal(results[0][1][name], results[1][1][name]) for name in results[0][1])
    kinds = {name.rpartition("layers.0.")[2]: own.dtype for name, own in half.named_parameters()}
    assert {kinds[name] for name in kinds if is_adapter(name) or "norm" in name or "bias" in name} == {torch.float32}
    assert kinds["mlp.up_proj.base_layer.weight" if targets is None else "mlp.up_proj.weight"] == torch.bfloat16
    assert kinds["model.embed_tokens.weight"] == torch.float32
    # Weights that a sampler gets are those of the rounded policy, as the trainer computes with them.
    weights = dict(named_weights(half))
    assert weights["model.layers.0.self_attn.q_proj.weight"].dtype == torch.float32


def test_merging_is_not_rounded_by_autocast():
    policy = adapted(tiny())
    plain = [own for _, own in named_weights(policy)]
    with torch.autocast("cpu", torch.bfloat16):
        inside = [own for _, own in named_weights(policy)]
    assert all(torch.equal(*pair) for pair in zip(plain, inside, strict=True))


def test_the_policys_fingerprint_is_that_of_its_weights():
    before = fingerprint(tiny())
    assert before == fingerprint(tiny())
    changed = tiny()
    changed.model.layers[1].mlp.up_proj.weight.data[3, 4] += 1e-6
    assert fingerprint(changed) != before


# ---- folders ----


@pytest.fixture(scope="module")
def trained():
    """The shipped policy with adapters that do something."""
    return adapted(load_policy(BASE, "sdpa").eval(), LoRAConfig(rank=4), noise=0.05)


def written(folder: Path, policy, *, adapter: bool) -> Path:
    policy.peft_config["default"].base_model_name_or_path = BASE
    card = ModelCard(BASE, "AsymGRPO", {}, "Countdown", 3, adapter=adapter)
    folder.mkdir()
    write_export(folder, policy, load_tokenizer(BASE), card)
    return folder


def test_the_merged_export_and_the_adapter_alone_compute_what_training_computed(trained, tmp_path):
    with torch.no_grad():
        expected = trained(TEXT).logits
        merged_folder = written(tmp_path / "merged", trained, adapter=False)
        model = AutoModelForCausalLM.from_pretrained(merged_folder)
        assert (model(TEXT).logits - expected).abs().max() < 1e-5
        assert {own.dtype for own in model.parameters()} == {torch.float32}
        folder = written(tmp_path / "adapter", trained, adapter=True)
        wrapped = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), folder)
        assert torch.equal(wrapped(TEXT).logits, expected)
        by_itself = AutoModelForCausalLM.from_pretrained(folder)  # transformers finds the base by the adapter's config
        assert torch.equal(by_itself(TEXT).logits, expected)
        assert (AutoModelForCausalLM.from_pretrained(BASE)(TEXT).logits - expected).abs().max() > 0.1
    assert "library_name: peft" in (folder / "README.md").read_text()
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert size < 0.2 * sum(path.stat().st_size for path in merged_folder.glob("*.safetensors"))


def test_an_adapters_folder_is_no_policy(trained, tmp_path):
    folder = written(tmp_path / "adapter", trained, adapter=True)
    with pytest.raises(UserError, match="holds an adapter"):
        check_model_path("model.policy", str(folder))
    for path in Path(BASE).iterdir():
        if not (folder / path.name).exists():
            (folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="holds an adapter"):
        check_model_path("model.policy", str(folder))
    with pytest.raises(UserError, match="holds an adapter"):  # as from the hub, where no file was looked at before
        load_policy(str(folder), "sdpa")


# ---- the sampler ----


def test_sampling_with_transformers_takes_the_merged_weights(trained):
    engine = TransformersEngine(BASE, TransformersEngineConfig(), "float32", max_model_len=26)
    engine.load_weights(named_weights(trained))
    assert engine.digest(3) == policy_digest(named_weights(trained), *linear_weights(trained), torch.float32, 3)
    requests = [SampleRequest(TEXT[0].tolist(), seed=number) for number in range(4)]
    assert gaps(trained, requests, engine.generate(requests, SETTINGS)) < 1e-5


def test_the_folder_of_a_server_gets_the_merged_weights(trained, tmp_path):
    transfer = FolderTransfer(str(tmp_path), "run", torch.float32)
    transfer.publish(named_weights(trained), 1)
    (path,) = tmp_path.glob("*.safetensors")
    sent, expected = load_file(path), dict(named_weights(trained))
    assert sent.keys() == expected.keys()
    assert all(torch.equal(sent[name], expected[name]) for name in sent)
