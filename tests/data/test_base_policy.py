import importlib.util
import json
import re
import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM

from asymgrpo_app.prompts import Countdown

DATA = Path(__file__).parents[2] / "data"
POLICY = DATA / "countdown_base"
CHARACTERS = "0123456789 +-*>"
TOKENIZER = AutoTokenizer.from_pretrained(POLICY)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As in the script; and many threads on busy cores only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_countdown_base", DATA / "make_countdown_base.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def policy() -> Qwen3ForCausalLM:
    return AutoModelForCausalLM.from_pretrained(POLICY)


def test_the_folder_is_small_and_holds_no_pickle() -> None:
    files = {path.name: path.stat().st_size for path in POLICY.rglob("*")}
    assert sorted(files) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert sum(files.values()) <= 5_000_000


def test_the_weights_on_disk_are_float32() -> None:
    content = (POLICY / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert {tensor["dtype"] for name, tensor in header.items() if name != "__metadata__"} == {"F32"}
    assert "lm_head.weight" not in header  # tied to the embeddings


def test_it_loads_as_a_qwen3_of_a_million_parameters(policy: Qwen3ForCausalLM) -> None:
    assert isinstance(policy, Qwen3ForCausalLM)
    assert policy.num_parameters() == 986_624
    assert policy.dtype == torch.float32
    assert policy.config.vocab_size == len(TOKENIZER) == len(CHARACTERS) + 2
    assert policy.config.head_dim % 32 == 0  # what vLLM's CPU attention takes


def test_generation_ends_at_eos_and_samples_as_asked(policy: Qwen3ForCausalLM) -> None:
    config = json.loads((POLICY / "generation_config.json").read_text())
    config.pop("transformers_version")
    assert config == {"eos_token_id": TOKENIZER.eos_token_id, "pad_token_id": TOKENIZER.pad_token_id}
    assert policy.config.eos_token_id == TOKENIZER.eos_token_id
    assert policy.config.bos_token_id is None


@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_character_of_a_problem_is_one_token(split: str) -> None:
    for position in range(100):
        prompt = Countdown(split=split).at(position, seed=0)
        for text in (prompt.text, prompt.row["answer"]):
            assert TOKENIZER.convert_ids_to_tokens(TOKENIZER.encode(text)) == list(text)


@settings(deadline=None)
@given(st.text(alphabet=CHARACTERS, max_size=40))
def test_decoding_undoes_encoding(text: str) -> None:
    assert isinstance(TOKENIZER, PreTrainedTokenizerFast)
    ids = TOKENIZER.encode(text)
    assert len(ids) == len(text)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.decode([*ids, TOKENIZER.eos_token_id], skip_special_tokens=True) == text


@pytest.mark.parametrize("text", ["3 + x", "3/5", "3\n5", "(3)", "٣"])
def test_other_characters_are_an_error_and_not_dropped(text: str) -> None:
    with pytest.raises(Exception, match="UNK"):
        TOKENIZER.encode(text)


def test_the_shipped_tokenizer_is_the_one_the_script_makes(maker: ModuleType) -> None:
    made = json.loads(maker.build_tokenizer().backend_tokenizer.to_str())
    shipped = json.loads((POLICY / "tokenizer.json").read_text())
    for key in ("model", "pre_tokenizer", "decoder", "normalizer", "post_processor", "added_tokens"):
        assert shipped[key] == made[key]


def test_the_warm_start_sees_training_problems_and_learns_completions_only(maker: ModuleType) -> None:
    tokenizer = maker.build_tokenizer()
    verifier = Countdown().verifier
    batches = maker.warm_start_batches(tokenizer, seed=1)
    for input_ids, attention_mask, labels in islice(batches, 5):
        assert torch.equal(labels[labels != -100], input_ids[labels != -100])
        for ids, mask, wanted in zip(input_ids, attention_mask, labels, strict=True):
            prompt, completion = tokenizer.decode(ids[mask.bool()]).split(">", maxsplit=1)
            *numbers, target = map(int, prompt.split())
            assert Countdown().split_of({"numbers": numbers, "target": target}) == "train"
            assert completion.endswith("<eos>")
            assert tokenizer.decode(wanted[wanted != -100]) == completion
            assert verifier.verify(completion.removesuffix("<eos>"), {"numbers": numbers, "target": target}).correct


def test_the_script_is_deterministic(maker: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(maker, "STEPS", 2)
    monkeypatch.setattr(maker, "WARMUP_STEPS", 1)
    monkeypatch.setattr(maker, "EVALUATED", 16)
    for name, seed in (("first", "4"), ("again", "4"), ("other", "5")):
        maker.main(["--out", str(tmp_path / name), "--seed", seed])
    for file in (path.name for path in POLICY.iterdir()):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "other")]
    assert weights[0] != weights[1]


def test_it_is_right_about_one_time_in_four_as_the_card_says(maker: ModuleType, policy: Qwen3ForCausalLM) -> None:
    accuracy = maker.sampled_accuracy(policy, TOKENIZER, Countdown(split="validation").fixed(256))
    assert 0.2 <= accuracy.avg_at_k <= 0.3
    assert accuracy.pass_at_k > 0.8
    card = (POLICY / "README.md").read_text()
    avg, passed = map(float, re.search(r"avg@8 (\d\.\d+), pass@8 (\d\.\d+)", card).groups())
    assert accuracy.avg_at_k == pytest.approx(avg, abs=0.02)
    assert accuracy.pass_at_k == pytest.approx(passed, abs=0.03)
    assert f"{policy.num_parameters():,} parameters" in card
    assert "license: apache-2.0" in card
