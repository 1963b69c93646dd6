"""Chat templates are programs that come with a model: what takes without end is found before a run."""

import time

import pytest
from transformers import AutoTokenizer

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts.templates import ChatTemplate
from tests.support.paths import POLICY

ENDLESS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops within loops of text": "{% set t = 'x' * 99999 %}{% for a in t %}{% for b in t %}{% endfor %}{% endfor %}",
    "a macro that calls itself twice": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
    "{{ m(99) }}",
    "a huge text": "{{ 'x' * 10 ** 10 }}",
    "a text that doubles": "{% set n = namespace(t='xxxxxxxx') %}{% for i in range(40) %}{% set n.t = n.t + n.t %}"
    "{% endfor %}{{ n.t }}",
    "a wide field": "{{ '%9999999999d' | format(1) }}",
    "a wide line": "{{ 'x' | center(9999999999) }}",
    "a long text": "{% for a in range(99999) %}{{ 'x' * 999 }}{% endfor %}",
    "a huge power": "{{ 9 ** (9 ** 9) }}",
    "a long list": "{% for a in [0] * 10 ** 9 %}{% endfor %}",
}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(POLICY)


@pytest.mark.long
@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_end_is_refused(tokenizer, name):
    tokenizer.chat_template = ENDLESS[name]
    began = time.monotonic()
    with pytest.raises(UserError, match="takes more than 5 seconds, or far more memory than a prompt"):
        ChatTemplate().check(tokenizer)
    assert time.monotonic() - began < 40


def test_a_template_that_makes_a_huge_text_is_refused(tokenizer):
    tokenizer.chat_template = ENDLESS["a huge text"]
    with pytest.raises(UserError, match="takes more than 5 seconds, or far more memory than a prompt"):
        ChatTemplate().check(tokenizer)


def test_sound_templates_pass_with_all_that_they_are_given(tokenizer):
    tokenizer.chat_template = (
        "{{ eos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}{{ day }}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    template = ChatTemplate("Be brief.", chat_template_kwargs={"day": "today"})
    template.check(tokenizer)
    assert template.render("1", tokenizer) == "<eos>system: Be brief.user: 1today>"


def test_one_of_several_templates_is_looked_at(tokenizer):
    tokenizer.chat_template = {"default": "{{ messages[0].content }}", "bad": ENDLESS["a huge text"]}
    ChatTemplate().check(tokenizer)
    with pytest.raises(UserError, match="far more memory than a prompt"):
        ChatTemplate(chat_template_kwargs={"chat_template": "bad"}).check(tokenizer)
