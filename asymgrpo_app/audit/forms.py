"""The forms in which completions give an answer; in which of them a verifier finds it is found by trying."""

FORMS: dict[str, str] = {
    "in a box": r"\boxed{{answer}}",
    "in a box in a sentence": r"Step by step this gives the final answer $\boxed{{answer}}$.",
    "in a displayed box": "So we get\n\\[\n\\boxed{{answer}}\n\\]",
    "in answer tags": "<answer>{answer}</answer>",
    "in answer tags after thoughts": "<think>\nI think.\n</think>\n<answer>{answer}</answer>",
    "after ####": "First this, then that.\n#### {answer}",
    "in a sentence": "The answer is {answer}",
    "in a sentence with a full stop": "The answer is {answer}.",
    "in a sentence between dollars": "The answer is ${answer}$.",
    "after a colon": "Answer: {answer}",
    "in bold": "**{answer}**",
    "alone": "{answer}",
}
"""Forms by name. Of those in which a verifier accepts equally many references the first is taken, so that a verifier
that looks for a box and falls back on the last number or line is judged by its box."""


OWN_FORM = "as --form says"


def named_forms(own: str | None = None) -> dict[str, str]:
    """The forms by name; `own`, one that a user named, goes first."""
    return ({} if own is None else {OWN_FORM: own}) | FORMS
