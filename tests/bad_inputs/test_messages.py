"""The parser's complaints in plain words."""

import pytest

from asymgrpo_app.cli.parser_messages import plain

MESSAGES = {
    "Parser key \"steps\": Expected a <class 'int'>. Got value: 1.5": "steps must be a whole number, got 1.5.",
    "Parser key \"model.attention\": Expected a typing.Literal['sdpa', 'eager']. Got value: flash": (
        "model.attention must be one of sdpa, eager, got flash."
    ),
    'Parser key "data.verifiers.workers":\n  Does not validate against any of the Union subtypes\n'
    "  Subtypes: [<class 'int'>, <class 'NoneType'>]\n  Errors:\n    - Expected a <class 'int'>\n"
    "    - Expected a <class 'NoneType'>\n  Given value type: <class 'str'>\n  Given value: 1.5": (
        "data.verifiers.workers must be a whole number, got 1.5."
    ),
    "Subcommand 'fit' does not accept option 'model.prompt_count'": "model.prompt_count is no option.",
    "Group 'data' does not accept option 'use_chat_template'": (
        "data.use_chat_template is no option: data.template has replaced it."
    ),
    "unrecognized arguments: --data.use_chat_template true": (
        "--data.use_chat_template is no option: data.template has replaced it."
    ),
    "something else\nthat nobody foresaw": "something else that nobody foresaw",
    'Parser key "a": in words that nobody foresaw': "a: in words that nobody foresaw",
}


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_of_the_parser_in_plain_words(message):
    assert plain(message) == MESSAGES[message]
