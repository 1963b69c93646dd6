"""How prompts begin and end as tokens: what the tokenizer adds, and what templates write."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors
from transformers import AutoModelForCausalLM, AutoTokenizer

from asymgrpo_app import PromptDataModule
from asymgrpo_app.checks.data import check_data, preview
from asymgrpo_app.datamodule import EvaluationSet
from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts import Addition, JsonLines
from asymgrpo_app.prompts.templates import ChatTemplate, PlainTemplate, Template
from tests.support.refusals import refusal
from tests.support.small_chat_policy import make as make_policy

EOS, PAD = 256, 257
MARKS = ("<bos>", "<|im_end|>", "[SEP]")
BOS, TURN, SEP = 258, 259, 260
TURNS = "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
HEADER = "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"


@pytest.fixture
def policy(tmp_path):
    """A byte policy whose tokenizer adds `before` and `after`, and whose second stop token is <|im_end|>."""

    def build(before: str = "", after: str = "", chat_template: str = TURNS + HEADER) -> str:
        folder = Path(make_policy(tmp_path / "policy"))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_special_tokens({"bos_token": "<bos>", "additional_special_tokens": list(MARKS[1:])})
        tokenizer.chat_template = chat_template
        tokenizer.save_pretrained(folder)
        inner = Tokenizer.from_file(str(folder / "tokenizer.json"))
        single = " ".join(part for part in (before, "$A", after) if part)
        named = [(text, inner.token_to_id(text)) for text in ("<eos>", *MARKS)]
        inner.post_processor = processors.TemplateProcessing(single=single, special_tokens=named)
        inner.save(str(folder / "tokenizer.json"))
        model = AutoModelForCausalLM.from_pretrained(folder)
        model.resize_token_embeddings(261, mean_resizing=False)
        model.save_pretrained(folder)
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, TURN]}))
        return str(folder)

    return build


@pytest.fixture
def data_of():
    modules = []

    def build(policy: str, **settings) -> PromptDataModule:
        modules.append(PromptDataModule(policy, Addition(), prompts_per_step=2, **settings))
        return modules[-1]

    yield build
    for module in modules:
        module.close()


def refused(data: PromptDataModule) -> str:
    with pytest.raises(UserError) as raised:
        check_data(data)
    return str(raised.value)


class Ends(Template):
    """A template of one's own that ends in a text."""

    def __init__(self, end: str) -> None:
        self.end = end

    def render(self, text, tokenizer) -> str:
        return text + self.end


def test_the_stop_tokens_are_those_of_the_checkpoint(policy, data_of):
    assert data_of(policy()).stop_token_ids == (EOS, TURN)


def test_a_tokenizer_that_appends_the_end_token_is_refused(policy, data_of):
    folder = policy(after="<eos>")
    data = data_of(folder)
    assert refused(data) == (
        "Prompts end in <eos>, which ends a completion, so that nothing is left to say (addition/train/0/0): the "
        f"tokenizer of {folder} appends it; set add_eos_token: false in its tokenizer_config.json, or take it out of "
        "the post_processor in its tokenizer.json."
    )
    assert refused(data_of(folder, bad_rows="skip")) == refused(data)  # no row is to blame


def test_a_chat_template_is_not_touched_by_what_the_tokenizer_appends(policy, data_of):
    data = data_of(policy(after="<eos>"), template=ChatTemplate())
    assert check_data(data) == []
    assert data.training_batch(0).prompts[0].token_ids[-1] == ord(">") - 33


def test_a_chat_template_that_ends_a_turn_before_the_header_passes(policy, data_of):
    data = data_of(policy(), template=ChatTemplate())
    assert check_data(data) == []
    assert TURN in data.training_batch(0).prompts[0].token_ids
    assert "<|im_end|>\n<assistant>" in data.training_batch(0).prompts[0].rendered


def test_a_chat_template_that_ends_in_a_stop_token_is_refused(policy, data_of):
    folder = policy(chat_template=TURNS.replace("\n", ""))
    assert refused(data_of(folder, template=ChatTemplate())) == (
        "Prompts end in <|im_end|>, which ends a completion, so that nothing is left to say (addition/train/0/0): "
        f"ChatTemplate writes it (the chat template of {folder}); end prompts where the answer begins, with the header "
        "of the assistant's turn if there is one."
    )


def test_a_chat_template_without_a_header_is_warned_of(policy, data_of):
    folder = policy(chat_template=TURNS)
    assert check_data(data_of(folder, template=ChatTemplate())) == [
        "WARNING: data.train: prompts end in <|im_end|> and white space, a turn that is over: the template of "
        f"{folder} does not begin the assistant's (add_generation_prompt)."
    ]


@pytest.mark.parametrize("end", ["<eos>", "<|im_end|>"])
@pytest.mark.parametrize("own", [Ends, lambda end: PlainTemplate("{prompt}" + end)])
def test_other_templates_are_held_to_it(policy, data_of, own, end):
    template = own(end)
    assert f"Prompts end in {end}" in refused(data_of(policy(), template=template))
    assert f"{type(template).__name__} writes it; end" in refused(data_of(policy(), template=template))


def test_evaluation_sets_are_held_to_it_by_their_own_template(policy, data_of):
    sets = {"mine": EvaluationSet(Addition(), limit=2, template=Ends("<eos>"))}
    data = data_of(policy(), validation=sets)
    with pytest.raises(UserError, match=r"Prompts end in <eos>.*Ends writes it"):
        check_data(data, training=False)


@pytest.mark.parametrize("where", ["training", "evaluation"])
def test_two_begin_tokens_are_warned_of(policy, data_of, where):
    folder = policy(before="<bos>")
    twice = PlainTemplate("<bos>{prompt}")
    sets = {"mine": EvaluationSet(Addition(), limit=2, template=twice)}
    data = data_of(folder, template=twice) if where == "training" else data_of(folder, validation=sets)
    key = "data.train" if where == "training" else "data.validation.mine"
    assert check_data(data) == [
        f"WARNING: {key}: prompts begin with <bos> twice, once by the tokenizer of {folder} and once by the template: "
        "leave it out of the template."
    ]
    assert check_data(data_of(folder)) == []


def test_another_token_that_the_tokenizer_appends_is_warned_of(policy, data_of):
    folder = policy(after="[SEP]")
    assert check_data(data_of(folder)) == [
        f"WARNING: data.train: prompts end in [SEP], which the tokenizer of {folder} appends: take it out of the "
        "post_processor in its tokenizer.json if no answer follows it."
    ]


def test_a_row_that_ends_in_a_stop_token_is_a_bad_row(policy, data_of, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "1 + 1 =", "answer": "2"}\n{"prompt": "1 + 2 =<eos>", "answer": "3"}\n')
    data = data_of(policy())
    data.train_source = JsonLines(str(path))
    assert refused(data) == (
        "1 of the rows of data.train cannot be used (repair them, or set data.bad_rows: skip), the first: "
        f"{path}, line 2: the prompt ends in <eos>, which ends a completion."
    )


def test_the_preview_is_the_text_of_the_tokens(policy, data_of):
    data = data_of(policy(before="<bos>", after="[SEP]"), template=PlainTemplate("{prompt}\nA:"))
    first = data.training_batch(0).prompts[0]
    lines = preview(data, 5)
    assert lines[0] == "The first prompts, as the policy sees them (PlainTemplate; completions of at most 5 tokens):"
    assert lines[1].startswith(f"  {first.prompt.uid}, {len(first.token_ids)} tokens, answer ")
    assert lines[2:4] == [f"    | <bos>{first.prompt.text}", "    | A:[SEP]"]
    assert first.token_ids[0] == BOS
    assert first.token_ids[-1] == SEP


def test_of_a_long_prompt_the_preview_shows_both_ends(policy, data_of):
    data = data_of(policy(), template=PlainTemplate("begin" + 2_000 * "x" + "{prompt} END"), max_prompt_tokens=4_000)
    lines = [line for line in preview(data, 5) if line.startswith("    | ")]
    assert len(lines) == 2
    assert lines[0].startswith("    | beginxxx")
    assert lines[0].endswith(" END")
    assert len(lines[0]) == len("    | ") + 1_000 + len(" ... ")


@pytest.mark.parametrize("command", ["fit", "check", "validate"])
def test_the_commands_refuse(policy, quickstart, command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    changed = [f"--model.policy={policy(after='<eos>')}", "--data.max_prompt_tokens=40"]
    assert "Prompts end in <eos>" in refusal([command, *quickstart[1:], *changed], capsys)
