"""Model cards of hostile names: no key is added to the head that hubs read, and nothing but text is shown."""

import html.parser

import pytest
import yaml

from asymgrpo_app.policy.export import ModelCard

NAMES = [
    "org/model\nlicense: mit\ntags: [evil]",
    "org/model\r\n---\n# Evil",
    "a: b",
    "{a: b}",
    "[a, b]",
    "*alias",
    "&anchor x",
    "!!python/object/apply:os.system [id]",
    "'",
    '"',
    "# comment",
    "null",
    "1e5",
    "a\u2028license: mit",
    "a\u0085license: mit",
    "---",
    "",
]
MARKUP = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[here](https://evil.example)",
    "![x](https://evil.example/x.png)",
    "https://evil.example",
    "www.evil.example",
    "a@evil.example",
    "`<b>x</b>`",
    "``<b>x</b>``",
    "a | b | [c](https://evil.example)",
    "a\\| b | <b>",
    "a\\",
    "x\n\n<b>y</b>",
    "x\n| evil | 100.0 % |",
    "x\r<b>",
    "\x1b[2J",
    "&lt;b&gt;",
    "<!--",
]


def card(**changes) -> ModelCard:
    return ModelCard(
        **{"base_model": "org/model", "method": "AsymGRPO", "settings": {}, "data": "Countdown", "steps": 5} | changes
    )


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("name", NAMES + MARKUP, ids=ascii)
def test_the_head_has_the_same_keys_whatever_the_model_is_called(name, adapter):
    text = card(base_model=name, adapter=adapter).text()
    head = yaml.safe_load(text.split("---\n")[1] if text.count("---\n") == 2 else text[4 : text.index("\n---\n\n#")])
    expected = {"library_name": "peft" if adapter else "transformers", "pipeline_tag": "text-generation"}
    assert head == expected | ({"base_model": name} if adapter else {})
    assert text.startswith("---\nlibrary_name: ")


class _Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)


def outside_of_code(line: str) -> str:
    """What Markdown looks at: code spans are between single backticks here."""
    parts = line.split("`")
    assert len(parts) % 2 == 1, line
    return "".join(parts[::2])


@pytest.mark.parametrize("place", ["base_model", "method", "data", "settings", "results"])
@pytest.mark.parametrize("name", MARKUP, ids=ascii)
def test_names_are_text_and_nothing_else(name, place):
    text = card(**{place: {"settings": {name: 0.5}, "results": {name: "75.0 %"}}.get(place, name)}).text()
    body = text[text.index("\n---\n\n#") + 6 :]
    plain = card(**{place: {"settings": {"x": 0.5}, "results": {"x": "75.0 %"}}.get(place, "x")}).text()
    assert body.count("\n") == plain[plain.index("\n---\n\n#") + 6 :].count("\n")
    seen = "\n".join(map(outside_of_code, body.splitlines()))
    assert not any(sign in seen for sign in ("<", "http", "www", "@", "[", "\x1b"))
    tags = _Tags()
    tags.feed(seen)
    assert tags.tags == []
    for line in body.splitlines():
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") == 3


def test_a_card_as_it_is_read():
    made = card(settings={"beta_pos": 0.9}, results={"countdown/avg@8": "75.0 % [70.0, 80.0]"}, adapter=True)
    assert made.text().split("Made with")[0] == (
        "---\nlibrary_name: peft\npipeline_tag: text-generation\nbase_model: org/model\n---\n\n"
        "# `model`, trained with `AsymGRPO`\n\n- Base model: `org/model`\n"
        "- Method: `AsymGRPO` (`beta_pos 0.9`), arXiv 2604.04894\n- Training problems: `Countdown`\n- RL steps: 5\n- "
    )
    assert made.text().endswith("| evaluation | value |\n| --- | --- |\n| `countdown/avg@8` | 75.0 % [70.0, 80.0] |\n")
