"""Rewrites the parser's errors as sentences for people who write configs, not Python."""

import re
from collections.abc import Iterable
from typing import Any

from asymgrpo_app.cli.commands import REPLACED, nearest
from asymgrpo_app.errors import one_line
from asymgrpo_app.rewards.functions import REWARDS_HINT
from asymgrpo_app.runtime.compat import options_of

_KEY = re.compile(r'(?:- )?(?:Problem with given class_path .*?: )?(?:- )?Parser key "([^"]+)":\s*')
_UNION = re.compile(r"Does not validate against any of the Union subtypes Subtypes: (.*?) Errors: - ")
_NO_PATH = re.compile(r"- Expected a path but .*? either not accessible or invalid\s*(?:- )?")
_CLASS = re.compile(r"<class '(?:[\w.]*\.)?(\w+)'>")
_FURTHER = re.compile(r" - Expected a | - Not a valid | - Import path | - Option | - Parser key | Given value type: ")
_VALUES = (
    r"NestedArg\(key='.*?', val=(.*?)\)(?:$| -| Given)",
    r"Got value: (.*?)(?: - | Given value| Subclass types|$)",
    r"Given value: (.*)$",
    r"Import path (\S+) does not correspond to a subclass",
    r"path string: (.*?)(?: - | Given|$)",
    r"Unable to load config '(.*?)'",
)
_PLAIN = re.compile(r"([\w.]+) ((?:must|has no option|lacks) .*?\.)(?: - |$| Given value)")
_NO_OPTION = re.compile(
    r"Subcommand '.+?' does not accept option '(?P<whole>.+?)'"
    r"|Group '(?P<group>.+?)' does not accept option '(?P<key>.+?)'"
    r"|unrecognized arguments: --(?P<given>[\w.+-]+)"
)
_OF_CLASSES = ("model.optimizer.init_args.lr", "model.optimizer.init_args.weight_decay")  # of whichever is chosen
_INNER_FILE = re.compile(r"Unable to load config '(.+?)' - (line \d+ .*|it holds .*|Parser key .*)")
_NOT_ACCEPTED = re.compile(r"Option '(.+?)' is not accepted(?P<near> \(did you mean .+?\?\))?")
_NO_TEXT = re.compile(r"[-+]?\.?\d[\d.e+-]*|True|False")
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list",
    "dict": "keys with values",
}
_OF_KEYS = ("Reading",)  # settings alone, which the parser takes for a class to choose


def known_keys(parser: Any) -> list[str]:
    """The keys of a parser and its subcommands."""
    return [*(key for key, _, _ in options_of(parser)), *_OF_CLASSES]


def plain(message: str, known: Iterable[str] = ()) -> str:
    """The message as one sentence with the dotted key and the value; its first reason if its form is not known.

    Args:
        message: Of the parser.
        known: The keys there are, of which the nearest to one that is not there is named.
    """
    text = " ".join(message.split())
    if found := _NO_OPTION.match(text):
        key = found["whole"] or found["given"] or f"{found['group']}.{found['key']}"
        return _no_option(key, known, dashes="--" if found["given"] else "")  # as it was written
    if (found := _NOT_ACCEPTED.fullmatch(text)) and (near := nearest(found[1], known)):  # by the parser of a class
        return f"{text} (did you mean {near}?)"
    keys: list[str] = []
    kind = ""
    while True:
        text = _NO_PATH.sub("", text, count=1) if text.startswith("- Expected a path") else text
        if found := _KEY.match(text):
            if found[1] not in keys:
                keys.append(found[1])
        elif found := _UNION.match(text):
            kind = next((name for name in _CLASS.findall(found[1]) if name != "NoneType"), kind)
        else:
            break
        text = text[found.end() :]
    if keys and (inner := _PLAIN.match(text)):  # already rewritten by the parser of a nested class
        return one_line(f"{'.'.join(keys)}.{inner[1]} {inner[2]}")
    if keys and (found := _INNER_FILE.match(text)):
        return one_line(f"{'.'.join(keys)}: {found[1]}: {plain(found[2], known)}")
    reason = _FURTHER.split(text, maxsplit=1)[0]
    complaint = _complaint(reason, kind)
    if not keys or complaint is None:
        return one_line(f"{'.'.join(keys)}: {reason}" if keys else reason)
    seen = _value(text)
    is_verifier = complaint.startswith("must name a class of the kind Verifier,")
    hint = _about_rewards("reward" if is_verifier else complaint.removeprefix("has no option "))
    quotes = ": put it in quotes" if complaint.endswith("a text") and _NO_TEXT.fullmatch(seen or "") else ""
    return one_line(f"{'.'.join(keys)} {complaint}{'' if seen is None else f', got {seen}'}{hint}{quotes}.")


def _about_rewards(option: str) -> str:
    """Where rewards go, for an option of that name in other programs: reward_funcs, reward_weights, reward_model."""
    return f"; {REWARDS_HINT}" if option.startswith("reward") else ""


def _no_option(key: str, known: Iterable[str], dashes: str) -> str:
    if key in REPLACED:
        return f"{dashes}{key} is no option: {REPLACED[key]} has replaced it."
    if hint := _about_rewards(key.rpartition(".")[2]):
        return f"{dashes}{key} is no option{hint}."
    near = nearest(key, known)
    return f"{dashes}{key} is no option{f'; did you mean {dashes}{near}?' if near else '.'}"


def with_option(sentence: str, arguments: Iterable[str]) -> str:
    """The sentence of a class's parser, which does not say for which key it read, with the option it is about."""
    if not (found := _NOT_ACCEPTED.match(sentence)):
        return sentence
    given = (argument.partition("=")[0] for argument in arguments)
    shown = next((name for name in given if name.endswith(f".{found[1]}")), found[1])
    return f"{shown} is no option of the class it is given to{found['near'] or ''}."


def _complaint(text: str, kind: str) -> str | None:
    """The fault of the key, from the parser's first reason; None if its form is not known."""
    if found := re.match(r"Expected a (?:typing\.)?Literal\[(.*?)\]", text):
        return f"must be one of {found[1].replace(chr(39), '')}"
    if found := re.match(r"Expected a <class '(\w+)'>", text):
        return f"must be {_KINDS.get(found[1], found[1])}"
    if found := _NOT_ACCEPTED.match(text):
        return f"has no option {found[1]}{found['near'] or ''}"
    if found := re.match(r"the following arguments are required: (.+)", text):
        return f"lacks {found[1]}"
    if text.startswith(("Expected a dot import path", "Import path", "Not a valid subclass", "Type typing.Callable")):
        if kind in _OF_KEYS:
            return "must be keys with values"
        if found := re.match(r"Import path \S+ does not correspond to a subclass of (\w+)", text):
            kind = kind or found[1]
        return f"must name a class of the kind {kind}, by its module and name" if kind else "must name a class"
    return "must be keys with values" if text.startswith("Unable to load config") else None


def _value(text: str) -> str | None:
    """The refused value; None if the message does not give it."""
    for pattern in _VALUES:
        if found := re.search(pattern, text):
            named = re.match(r"Namespace\(class_path='(.*?)'", found[1])
            if named is None and "Namespace(" in found[1]:
                return None
            return named[1] if named else found[1].strip("'").removesuffix(".")
    return None
