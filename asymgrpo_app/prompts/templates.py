"""Templates of prompts: the tokenizer's chat template, or plain text for a base model."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts.base import Turn
from asymgrpo_app.prompts.template_probe import SECONDS, takes_too_much

if TYPE_CHECKING:  # transformers takes seconds to import, which a wrong key should not wait for
    from transformers import PreTrainedTokenizerBase

PLACEHOLDER = "{prompt}"
MATH_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


class Template(ABC):
    """Renders the text of a problem. Configured by `class_path` and `init_args`."""

    adds_special_tokens: ClassVar[bool] = False
    """Whether the tokenizer adds its own special tokens (such as a begin-of-text token) to the rendered text."""

    @abstractmethod
    def render(self, text: str, tokenizer: "PreTrainedTokenizerBase") -> str:
        """Render a problem's text into the text that is tokenized and completed."""

    def render_chat(self, turns: Sequence[Turn], text: str, tokenizer: "PreTrainedTokenizerBase") -> str:
        """Render a problem with the turns of a chat before it.

        Raises:
            ValueError: There are turns, and the template has no place for them.
        """
        if turns:
            raise ValueError(
                f"{type(self).__name__} has no place for the turns before the last message ({turns[0].role}, ...): use "
                "ChatTemplate, or read that message alone (prompt_field: messages.-1.content)"
            )
        return self.render(text, tokenizer)

    def check(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Raise `UserError` if this tokenizer cannot render the template."""


class PlainTemplate(Template):
    """Plain text, for base models.

    Args:
        format: The text around the problem; `{prompt}` is replaced by the problem, all other braces are left as is.
    """

    adds_special_tokens: ClassVar[bool] = True

    def __init__(self, format: str = PLACEHOLDER) -> None:  # noqa: A002 (the key of the config)
        if format.count(PLACEHOLDER) != 1:
            raise UserError(f"format of a template must hold {PLACEHOLDER} once, got {format!r}.")
        self.before, self.after = format.split(PLACEHOLDER)

    def render(self, text: str, tokenizer: "PreTrainedTokenizerBase") -> str:
        return f"{self.before}{text}{self.after}"


class ChatTemplate(Template):
    """The tokenizer's own chat template, with the problem as the user's message.

    Args:
        system: The system message; null: none (a template may then add its own).
        format: The user's message; `{prompt}` is replaced by the problem, all other braces are left as is.
        chat_template_kwargs: Further arguments of the chat template, e.g. `{enable_thinking: false}` for Qwen3.
    """

    def __init__(
        self,
        system: str | None = None,
        format: str = PLACEHOLDER,  # noqa: A002 (the key of the config)
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.system = system
        self.message = PlainTemplate(format)
        self.chat_template_kwargs = chat_template_kwargs or {}
        if reserved := sorted({"conversation", "tokenize", "add_generation_prompt"} & set(self.chat_template_kwargs)):
            raise UserError(f"chat_template_kwargs of a template must leave {', '.join(reserved)} to this program.")

    def _messages(
        self, text: str, tokenizer: "PreTrainedTokenizerBase", turns: Sequence[Turn] = ()
    ) -> list[dict[str, str]]:
        if self.system is not None and turns and turns[0].role == "system":
            raise ValueError(
                "it has a system message, and data.template has another: set system of the template to null"
            )
        own = [] if self.system is None else [Turn("system", self.system)]
        asked = Turn("user", self.message.render(text, tokenizer))
        return [{"role": turn.role, "content": turn.content} for turn in (*own, *turns, asked)]

    def render(self, text: str, tokenizer: "PreTrainedTokenizerBase") -> str:
        return self.render_chat((), text, tokenizer)

    def render_chat(self, turns: Sequence[Turn], text: str, tokenizer: "PreTrainedTokenizerBase") -> str:
        messages = self._messages(text, tokenizer, turns)
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **self.chat_template_kwargs
            )
        )

    def check(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        if tokenizer.chat_template is None:
            raise UserError(
                f"data.template is {type(self).__name__}, but the tokenizer of {tokenizer.name_or_path} has no chat "
                "template: use PlainTemplate, or an instruct model."
            )
        self._check_limits(tokenizer)
        try:
            self.render("1 + 1", tokenizer)
        except Exception as error:  # templates are programs of the model's authors and raise what they like
            raise UserError(
                f"The chat template of {tokenizer.name_or_path} does not take these settings of data.template: {error}."
            ) from error

    def _check_limits(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        try:
            template = tokenizer.get_chat_template(self.chat_template_kwargs.get("chat_template"))
        except ValueError:
            return  # there are several, and none of a name that is known: rendering says so
        others = {name: value for name, value in self.chat_template_kwargs.items() if name != "chat_template"}
        if takes_too_much(template, self._messages("1 + 1", tokenizer), {**tokenizer.special_tokens_map, **others}):
            raise UserError(
                f"The chat template of {tokenizer.name_or_path} takes more than {SECONDS} seconds, or far more memory "
                "than a prompt: it is broken, or was made to do harm."
            )


class MathChat(ChatTemplate):
    r"""Mathematics with a chat model: asks for reasoning and for the final answer in \boxed{}.

    Args:
        system: The system message; null: none (a template may then add its own).
        chat_template_kwargs: Further arguments of the chat template, e.g. `{enable_thinking: false}` for Qwen3.
    """

    def __init__(self, system: str | None = None, chat_template_kwargs: dict[str, Any] | None = None) -> None:
        super().__init__(system, f"{PLACEHOLDER}\n{MATH_INSTRUCTION}", chat_template_kwargs)


class MathPlain(PlainTemplate):
    r"""Mathematics with a base model: problem and solution as paragraphs, the answer asked for in \boxed{}."""

    def __init__(self) -> None:
        super().__init__(f"Problem:\n{PLACEHOLDER}\n{MATH_INSTRUCTION}\n\nSolution:\n")
