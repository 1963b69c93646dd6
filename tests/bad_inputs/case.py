"""What a case of bad input is."""

from dataclasses import dataclass, field

CONFIG = "mine.yaml"


@dataclass(frozen=True)
class BadInput:
    """A command that must be refused.

    Attributes:
        arguments: After the quick start's, or after a command's name of their own if they begin with one.
        told: Texts that the sentence must hold: the key, the value.
        files: Content by name, to be written into the working directory before; a folder for a name that ends in `/`.
        opens: Whether the case is about a file of weights, so that one may be opened.
    """

    arguments: tuple[str, ...]
    told: tuple[str, ...]
    files: dict[str, str | bytes] = field(default_factory=dict)
    opens: bool = False


def option(argument: str, *told: str) -> BadInput:
    """`key=value` on the command line; the sentence names the key and the value, or what is given instead."""
    key, _, value = argument.partition("=")
    return BadInput((f"--{argument}",), told or (key, value))


def config(text: str | bytes, *told: str) -> BadInput:
    """A second config file."""
    return BadInput((f"--config={CONFIG}",), told, {CONFIG: text})


def setting(key: str, value: str, *told: str) -> BadInput:
    """`key: value` in a second config file, in YAML; the sentence names the key and the value, or what is given."""
    sections = key.split(".")
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(sections)]
    return config("\n".join(lines) + f" {value}\n", *(told or (key, value)))
