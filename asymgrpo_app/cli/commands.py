"""The commands by name, and what is wrong with a command line that can be told without a parser.

Imports nothing heavy: a parser needs torch and Lightning, which take seconds to import.
"""

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher, get_close_matches

from asymgrpo_app.errors import UserError

COMMANDS = {
    "fit": "train a policy",
    "check": "look at all that a fit needs, and start nothing",
    "validate": "evaluate a checkpoint, or the base policy, on the sets of data.validation",
    "test": "the same, as Lightning's test",
    "predict": "write a completion for every problem of the sets to a file",
    "score": "judge a file of completions",
    "audit": "find what a verifier wrongly refuses and accepts",
    "compare": "compare evaluations of the same problems",
    "export": "turn a checkpoint into a folder in Hugging Face format",
    "serve": "start a vLLM server that a run samples from",
}
OF_A_CONFIG = ("fit", "check", "validate", "test", "predict")
"""The commands whose options are the keys of a config."""

SECTIONS = ("model", "data", "rollout", "checkpoint", "tensorboard", "trainer")
_SINGLE = ("seed_everything", "steps", "run_dir", "time_limit", "ckpt_path", "verbose", "output")
KEYS = (*_SINGLE, *SECTIONS)
"""What the keys of a config begin with."""

REPLACED = {"data.use_chat_template": "data.template"}
"""Keys of earlier versions, which saved configs still hold."""

_ALIKE = 0.75  # of 1, the same: two letters of four in the wrong order
_LAST_ALIKE = 0.6
_OTHER_WORDS = {"train": "fit", "eval": "validate", "evaluate": "validate", "generate": "predict", "judge": "score"}
_EXAMPLE = "asymgrpo fit --config configs/quickstart.yaml"
_USAGE = """usage: asymgrpo COMMAND [options]

Train and evaluate language models with AsymGRPO.

commands:
{}

`asymgrpo COMMAND --help` lists the options of one, `asymgrpo --version` says which release this is. To begin with:
{}"""


def usage() -> str:
    """The page of `asymgrpo --help`."""
    return _USAGE.format("\n".join(f"  {name:<10}{what}" for name, what in COMMANDS.items()), _EXAMPLE)


def check_command(arguments: Sequence[str]) -> None:
    """Refuse a command line that does not begin with a command, or that only begins with one.

    Raises:
        UserError: With the commands there are, and the nearest.
    """
    everything = f"The commands are {', '.join(COMMANDS)} (asymgrpo --help)."
    if not arguments:
        raise UserError(f"there is no command. {everything}")
    name = arguments[0]
    if name.startswith("-"):
        raise UserError(f"the command comes first, as in {_EXAMPLE}, got {name}. {everything}")
    if name not in COMMANDS:
        near = _OTHER_WORDS.get(name.lower()) or next(iter(get_close_matches(name.lower(), COMMANDS, 1)), None)
        raise UserError(f"{name} is no command{f'; did you mean {near}?' if near else '.'} {everything}")
    if len(arguments) == 1 and name in OF_A_CONFIG:
        needed = "--model.policy and " + ("--data.train" if name in ("fit", "check") else "--data.validation")
        raise UserError(
            f"{name} needs a config: asymgrpo {name} --config configs/quickstart.yaml, or at least {needed}."
        )


def long_options(arguments: Sequence[str]) -> list[str]:
    """The arguments with every way to name a config (`-c FILE`, `-cFILE`, `-c=FILE`) written as `--config=FILE`.

    Raises:
        UserError: The last one names none.
    """
    written: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in ("-c", "--config"):
            if (file := next(rest, None)) is None:
                raise UserError(f"{argument} is the last word: the name of a file must follow it.")
            written.append(f"--config={file}")
        elif argument.startswith("-c") and not argument.startswith("--"):
            written.append(f"--config={argument[2:].removeprefix('=')}")
        else:
            written.append(argument)
    return written


def check_options_of_config(arguments: Sequence[str], more: Iterable[str] = ()) -> None:
    """Refuse options whose first word is nearly that of a key; others may be the last word of one: the parser knows.

    Args:
        arguments: Those after the command's name.
        more: Further options of the command.

    Raises:
        UserError: With the option that was meant.
    """
    known = (*KEYS, "config", "print_config", "help", *more)
    for argument in arguments:
        if argument.startswith("--"):
            key = argument[2:].partition("=")[0]
            first, dot, rest = key.partition(".")
            if first.rstrip("+") not in known and (near := nearest(first, known)):
                raise UserError(f"--{key} is no option; did you mean --{near}{dot}{rest}?")


def nearest(key: str, known: Iterable[str]) -> str | None:
    """The known key that is most likely meant by one that is not known; None if none is alike.

    Compared are whole keys, what they end with, and what they begin with: a guess has the right last word
    (`model.lr`), an abbreviation the first letters of each.
    """
    if key in REPLACED:
        return REPLACED[key]
    found = max(((_likeness(key, other), other) for other in known), default=(0.0, ""))
    return found[1] if found[0] >= _ALIKE else None


def _likeness(key: str, other: str) -> float:
    if key.startswith(f"{other}."):
        return 0.0  # of an option that has no further ones
    parts, others = key.split("."), other.split(".")
    whole, last = _ratio(key, other), _ratio(parts[-1], others[-1])
    if parts[-1] == others[-1]:
        return 1 + whole
    if len(parts) == len(others) and all(map(str.startswith, others, parts)):
        return 1.0
    return max(whole, 0.9 * last + 0.1 * whole) if last >= _LAST_ALIKE else 0.0


def _ratio(one: str, other: str) -> float:
    return SequenceMatcher(None, one.lower(), other.lower()).ratio()
