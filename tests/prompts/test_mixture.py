from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from asymgrpo_app.prompts import BadRow, Countdown, JsonLines, Mixture, Prompt, PromptSource, WeightedSource
from asymgrpo_app.prompts.mixture import _shares
from asymgrpo_app.rewards import ExactMatch

Refusal = Callable[..., str]
Files = Callable[[str, int], JsonLines]


@pytest.fixture
def lines(tmp_path: Path) -> Files:
    def source(name: str, count: int) -> JsonLines:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(f'{{"prompt": "{name}{number}", "answer": 1}}\n' for number in range(count)))
        return JsonLines(str(path))

    return source


class Counting(PromptSource):
    """An endless source whose prompts say which position and seed they were asked for."""

    def at(self, position: int, seed: int) -> Prompt:
        return Prompt(f"{seed}/{position}", str(position), {"answer": "1"}, ExactMatch())

    def fixed(self, limit: int | None) -> Sequence[Prompt]:
        return [self.at(position, 0) for position in range(limit or 0)]


def origins(mixture: Mixture, positions: range, seed: int = 0) -> list[int]:
    return [int(mixture.at(position, seed).uid.split("/")[0]) for position in positions]


def test_every_block_has_the_exact_proportions_in_an_order_of_its_own() -> None:
    mixture = Mixture(
        [WeightedSource(Counting(), 0.5), WeightedSource(Counting(), 0.3), WeightedSource(Counting(), 0.2)]
    )
    blocks = [tuple(origins(mixture, range(10 * block, 10 * block + 10))) for block in range(100)]
    assert all(Counter(block) == {0: 5, 1: 3, 2: 2} for block in blocks)
    assert len(set(blocks)) > 90
    assert blocks[:2] != [tuple(origins(mixture, range(10 * block, 10 * block + 10), seed=1)) for block in range(2)]


def test_each_source_is_read_in_its_own_order_without_gaps() -> None:
    mixture = Mixture([WeightedSource(Counting(), 3), WeightedSource(Counting(), 1)])
    seen: dict[str, list[int]] = {"0": [], "1": []}
    seeds: dict[str, set[str]] = {"0": set(), "1": set()}
    for position in range(4_000):
        number, seed, within = mixture.at(position, seed=5).uid.split("/")
        seen[number].append(int(within))
        seeds[number].add(seed)
    assert seen == {"0": list(range(3_000)), "1": list(range(1_000))}
    assert [len(used) for used in seeds.values()] == [1, 1]
    assert len({"5"} | seeds["0"] | seeds["1"]) == 3


def test_the_stream_is_a_pure_function_and_does_not_change_between_versions() -> None:
    parts = [WeightedSource(Counting(), 1), WeightedSource(Countdown(), 2)]
    forwards = [Mixture(parts).at(position, seed=1).uid for position in range(60)]
    mixture = Mixture(parts)
    assert [mixture.at(position, seed=1).uid for position in reversed(range(60))][::-1] == forwards
    assert [mixture.at(position, seed=1).uid for position in (0, 1, 2, 10**9)] == [
        "0/1933796006063908378/0",
        "1/countdown/train/1595627067741386303/0",
        "1/countdown/train/1595627067741386303/1",
        "1/countdown/train/1595627067741386303/666666667",
    ]


def test_a_small_source_repeats_on_its_own(lines: Files) -> None:
    mixture = Mixture([WeightedSource(lines("a", 4)), WeightedSource(lines("b", 100))])
    assert mixture.size == 104
    texts = [mixture.at(position, seed=0).text for position in range(200)]
    firsts = [text for text in texts if text.startswith("a")]
    assert [sorted(firsts[start : start + 4]) for start in range(0, 100, 4)] == [["a0", "a1", "a2", "a3"]] * 25
    assert len({text for text in texts if text.startswith("b")}) == 100


def test_mixtures_of_mixtures(lines: Files) -> None:
    inner = Mixture([WeightedSource(lines("a", 10), 1), WeightedSource(lines("b", 10), 3)])
    mixture = Mixture([WeightedSource(inner, 1), WeightedSource(lines("c", 10), 1)])
    assert Counter(mixture.at(position, 0).text[0] for position in range(80)) == {"a": 10, "b": 30, "c": 40}
    assert mixture.size == 30
    assert mixture.at(0, 0).uid in {f"{part}.jsonl/{line}" for part in ("0/0/a", "0/1/b", "1/c") for line in range(11)}
    assert [part.path for part in mixture.finite_parts()] == [
        f"{inner.sources[0].source.path[:-7]}{n}.jsonl" for n in "abc"
    ]


def test_an_endless_source_makes_the_mixture_endless(lines: Files, refusal: Refusal) -> None:
    mixture = Mixture([WeightedSource(Countdown()), WeightedSource(lines("a", 3))])
    assert mixture.size is None
    assert [part.size for part in mixture.finite_parts()] == [3]
    assert refusal(mixture.fixed, None) == "A mixture with an endless source needs a limit for evaluation."
    prompts = mixture.fixed(20)
    assert Counter(prompt.uid.split("/")[0] for prompt in prompts[:6]) == {"0": 3, "1": 3}
    assert Counter(prompt.uid.split("/")[0] for prompt in prompts) == {"0": 17, "1": 3}
    places = {prompt.place for prompt in prompts if prompt.uid.startswith("0/")}
    assert {place.rsplit("/", 1)[0] for place in places} == {"countdown/train/0"}


def test_fixed_deals_by_the_same_proportions_until_a_source_ends(lines: Files) -> None:
    mixture = Mixture([WeightedSource(lines("a", 8), 2), WeightedSource(lines("b", 3), 1)])
    everything = [prompt.text for prompt in mixture.fixed(None)]
    assert sorted(everything) == sorted([f"a{number}" for number in range(8)] + [f"b{number}" for number in range(3)])
    assert [text for text in everything if text[0] == "a"] == [f"a{number}" for number in range(8)]
    assert [text[0] for text in everything[9:]] == ["a", "a"]
    assert Counter(text[0] for text in everything[:6]) == {"a": 4, "b": 2}
    for limit in (1, 5, 10, 11, 50):
        assert [prompt.text for prompt in mixture.fixed(limit)] == everything[:limit]


def test_a_bad_row_is_named_as_in_its_source(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("no\n")
    mixture = Mixture([WeightedSource(JsonLines(str(path)))])
    with pytest.raises(BadRow, match=r"bad.jsonl, line 1: not JSON"):
        mixture.at(0, 0)


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ([1.0], (1,)),
        ([1.0, 1.0], (1, 1)),
        ([0.1, 0.2, 0.7], (1, 2, 7)),
        ([2.5, 7.5], (1, 3)),
        ([7473, 12000], (2491, 4000)),
        ([1, 9_999], (1, 9_999)),
        ([1e-9, 1], (1, 9_999)),
        ([0.333333, 0.666667], (3_333, 6_667)),
        ([1e-9, 1e-9, 0.50001, 0.49999], (1, 1, 4_999, 4_999)),
        ([3e300, 1e300], (3, 1)),
    ],
)
def test_shares_of_a_block(weights: list[float], shares: tuple[int, ...]) -> None:
    assert _shares(weights) == shares


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_must_be_positive(weight: float, refusal: Refusal) -> None:
    parts = [WeightedSource(Countdown()), WeightedSource(Countdown(), weight)]
    assert refusal(Mixture, parts) == f"sources[1].weight must be above 0 and finite, got {weight}."
    assert refusal(Mixture, []) == "A mixture needs at least one source."


def test_it_can_be_written_in_a_config() -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_subclass_arguments(PromptSource, "train")
    config = parser.parse_object(
        {
            "train": {
                "class_path": "asymgrpo_app.prompts.Mixture",
                "init_args": {
                    "sources": [
                        {"source": {"class_path": "asymgrpo_app.prompts.Countdown"}, "weight": 3},
                        {
                            "source": {
                                "class_path": "asymgrpo_app.prompts.Countdown",
                                "init_args": {"split": "validation"},
                            }
                        },
                    ]
                },
            }
        }
    )
    mixture = parser.instantiate_classes(config).train
    assert [(part.source.split, part.weight) for part in mixture.sources] == [("train", 3.0), ("validation", 1.0)]
    assert Counter(origins(mixture, range(40))) == {0: 30, 1: 10}
