"""What stands around a problem."""

import pytest
from transformers import AutoTokenizer

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts.templates import ChatTemplate, MathChat, MathPlain, PlainTemplate

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}{% if enable_thinking is defined and not enable_thinking %}"
    "<no think>{% endif %}"
)


@pytest.fixture
def tokenizer(repository):
    return AutoTokenizer.from_pretrained(repository / "data/countdown_base")


@pytest.fixture
def chat_tokenizer(tokenizer):
    tokenizer.chat_template = CHAT
    return tokenizer


def test_plain_text_is_the_problem_itself(tokenizer):
    assert PlainTemplate().render("3 5 2 7 17>", tokenizer) == "3 5 2 7 17>"
    assert PlainTemplate.adds_special_tokens


def test_braces_around_the_placeholder_stand_for_themselves(tokenizer):
    template = PlainTemplate("Q: {prompt}\nAnswer in \\boxed{}: {x}")
    assert template.render("{prompt} {y}", tokenizer) == "Q: {prompt} {y}\nAnswer in \\boxed{}: {x}"


@pytest.mark.parametrize("text", ["no place", "{prompt} and {prompt}", ""])
def test_a_format_without_one_placeholder_is_refused(text):
    with pytest.raises(UserError, match=r"must hold \{prompt\} once"):
        PlainTemplate(text)


def test_chat_with_system_message_and_settings(chat_tokenizer):
    template = ChatTemplate("Be brief.", "{prompt}!", {"enable_thinking": False})
    rendered = template.render("1 + 1", chat_tokenizer)
    assert rendered == "<system>Be brief.</system><user>1 + 1!</user><assistant><no think>"
    assert ChatTemplate().render("1 + 1", chat_tokenizer) == "<user>1 + 1</user><assistant>"
    assert not ChatTemplate.adds_special_tokens


def test_maths_asks_for_a_box(chat_tokenizer):
    assert MathChat().render("1 + 1", chat_tokenizer) == (
        "<user>1 + 1\nPlease reason step by step, and put your final answer within \\boxed{}.</user><assistant>"
    )
    assert MathPlain().render("1 + 1", chat_tokenizer) == (
        "Problem:\n1 + 1\nPlease reason step by step, and put your final answer within \\boxed{}.\n\nSolution:\n"
    )


def test_a_tokenizer_without_chat_template(tokenizer):
    with pytest.raises(UserError, match="has no chat template: use PlainTemplate, or an instruct model"):
        ChatTemplate().check(tokenizer)


def test_a_chat_template_that_refuses(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('no system message here') }}"
    with pytest.raises(UserError, match="no system message here"):
        ChatTemplate("Be brief.").check(tokenizer)


def test_reserved_settings():
    with pytest.raises(UserError, match="must leave tokenize to this program"):
        ChatTemplate(chat_template_kwargs={"tokenize": True})
