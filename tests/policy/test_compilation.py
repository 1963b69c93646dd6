"""`model.compile`: the same numbers from compiled transformer blocks, one compiled form for all lengths and layers."""

import shutil
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoConfig, AutoModelForCausalLM

from asymgrpo_app.cli import main
from asymgrpo_app.errors import UserError
from asymgrpo_app.microbatch.microbatch import build
from asymgrpo_app.microbatch.packing import cut_packed, pack
from asymgrpo_app.policy import compilation, packed_attention
from asymgrpo_app.policy.compilation import check_compiler, compile_blocks
from asymgrpo_app.policy.loading import token_logprobs
from tests.support.recorded_training import COMPILED, result_of, trained, trained_on_two_processes
from tests.support.small_models import families, relative_error, scores, small_config

COMPILED_CASES = ("three clipped steps", "uneven")
packed_attention.register()
compiles = pytest.mark.skipif(
    not shutil.which("g++"), reason="torch compiles for a CPU with g++, which a supported machine may lack"
)


@pytest.fixture(autouse=True)
def nothing_compiled_yet():
    torch._dynamo.reset()
    counters.clear()


@pytest.fixture(params=["eager", pytest.param("inductor", marks=[pytest.mark.long, compiles])])
def backend(request, monkeypatch):
    """What becomes of the captured graphs: run as they are, or made into C++ as in a run, which takes a minute."""
    monkeypatch.setattr(compilation.torch, "compile", partial(torch.compile, backend=request.param))


def model_of(attention: str, layers: int = 3):
    torch.manual_seed(0)
    config = small_config("llama")
    config.num_hidden_layers = layers
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).train()


def whole(form, seed):
    sequences = families(seed)
    (members,) = cut_packed(sequences, 10**6)
    return form(sequences, members)


@pytest.mark.parametrize(("asked", "workers"), [(None, 6), ("3", 3)])
def test_importing_vllm_first_does_not_leave_one_worker_to_compile(asked, workers, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")  # as vLLM does when it is imported, for its own processes
    monkeypatch.setattr(compilation, "_ASKED_WORKERS", asked)
    monkeypatch.setattr(compilation.os, "sched_getaffinity", lambda process: range(6))
    seen = set()

    def workers_now(graph, *_, **__):
        seen.add(torch._inductor.config.compile_threads)
        return graph

    monkeypatch.setattr("torch._inductor.compile_fx._maybe_wrap_and_compile_fx_main", workers_now)
    model = model_of("sdpa", layers=1)
    with torch._inductor.config.patch(compile_threads=1), torch.no_grad():
        compile_blocks(model)
        token_logprobs(model, whole(build, 0), temperature=1.0)
    assert seen == {workers}


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("attention", "form"), [(packed_attention.NAME, pack), ("sdpa", build)])
def test_values_and_gradients_are_those_of_the_plain_model(attention, form):
    plain, compiled = model_of(attention), model_of(attention)
    compile_blocks(compiled)
    assert [name for name, _ in compiled.named_parameters()] == [name for name, _ in plain.named_parameters()]
    for seed in (0, 1):
        batch = whole(form, seed)
        for own, expected in zip(scores(compiled, batch), scores(plain, batch), strict=True):
            assert relative_error(own, expected) < 3e-6


@pytest.mark.usefixtures("backend")
def test_one_compiled_form_serves_all_lengths_and_all_layers():
    model = model_of(packed_attention.NAME, layers=2)
    compile_blocks(model)
    scores(model, whole(pack, 0))
    graphs = counters["stats"]["unique_graphs"]
    assert graphs >= 1
    deeper = model_of(packed_attention.NAME, layers=5)
    compile_blocks(deeper)
    for seed in (1, 2, 3):
        scores(model, whole(pack, seed))
        scores(deeper, whole(pack, seed))
    assert counters["stats"]["unique_graphs"] == graphs


def assert_same_run(compiled, plain):
    assert plain.keys() == compiled.keys()
    for name, expected in plain.items():
        if name.startswith("gradient") or name == "weights":
            # After the first update rounding of the weights adds to that of the passes.
            assert relative_error(compiled[name], expected) < (1e-5 if name == "gradient 0" else 1e-4), name
        else:
            assert float(compiled[name]) == pytest.approx(float(expected), rel=1e-4, abs=1e-5), name


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("case", [pytest.param(COMPILED_CASES[0], marks=pytest.mark.long), COMPILED_CASES[1]])
def test_a_run_that_compiles_is_the_same_run_up_to_rounding(case):
    compiled = trained(case, 60, compiled=True, devices=1)
    assert counters["stats"]["unique_graphs"] > 0
    assert_same_run(compiled, trained(case, 60, devices=1))


@compiles
@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_compile_to_the_run_of_one_that_does_not(strategy, tmp_path):
    trained_on_two_processes(tmp_path, **{strategy: [COMPILED + case for case in COMPILED_CASES]})
    for case in COMPILED_CASES:
        assert_same_run(result_of(tmp_path, strategy, COMPILED + case), trained(case, 200, devices=1))


@pytest.mark.parametrize(
    ("device", "has", "refusal"),
    [
        ("cpu", {"g++"}, None),
        ("cpu", {"clang++", "c++", "gcc"}, r"needs a C\+\+ compiler .* \(g\+\+\): .*apt-get install g\+\+\)"),
        ("cuda", {"clang"}, None),
        ("cuda", {"g++"}, r"needs a C compiler .* \(gcc, clang\): .*apt-get install gcc\)"),
    ],
)
def test_a_compiler_that_torch_does_not_try_is_none(device, has, refusal, monkeypatch):
    monkeypatch.setattr(compilation.sys, "platform", "linux")
    monkeypatch.setattr(compilation.shutil, "which", lambda name: name if name in has else None)
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=refusal) if refusal else nullcontext():
        check_compiler(device)
    monkeypatch.setenv("CXX" if device == "cpu" else "CC", "own")
    with pytest.raises(UserError, match=r"\(own\)"):
        check_compiler(device)


def test_a_run_without_a_compiler_is_refused_before_a_model_is_loaded(quickstart, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compilation.shutil, "which", lambda name: None)
    assert main(["check", *quickstart[1:], "--trainer.accelerator=cpu", "--model.compile=true"]) == 2
    assert "model.compile needs a C++ compiler" in capsys.readouterr().err


def test_an_architecture_without_known_blocks_is_refused():
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_layer=1, n_embd=16, n_head=2))
    model._no_split_modules = None
    with pytest.raises(UserError, match=r"model\.compile does not know the transformer blocks of architecture gpt2"):
        compile_blocks(model)
