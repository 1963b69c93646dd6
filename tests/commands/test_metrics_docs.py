"""docs/metrics.md names exactly what runs write, and the method's own panel shows what a plain loop calculates."""

import math
import random
import re
from functools import partial
from html.parser import HTMLParser
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.plugin_util import markdown_to_safe_html

from asymgrpo_app.algorithm.advantages import AsymGRPO, asym_advantages
from asymgrpo_app.callbacks.tensorboard import LAYOUT, advantage_curves, samples_table
from asymgrpo_app.checks.run_tags import run_tags
from asymgrpo_app.module import AsymGRPOModule
from asymgrpo_app.prompts.base import EncodedPrompt, Prompt
from asymgrpo_app.rewards.base import Status, Verdict
from asymgrpo_app.rewards.exact import ExactMatch
from asymgrpo_app.rollout.types import Completion, JudgedCompletion
from asymgrpo_app.update.perf import PassedTokens, performance
from tests.support.events import events_of
from tests.support.paths import REPOSITORY
from tests.support.scripted_engine import POLICY, fit
from tests.support.table_policy import UPDATES_PER_STEP, Table, TablePolicy, judged, rollout_batch, run_steps

METHODS = REPOSITORY / "configs/methods"

DETAILS = ("--tensorboard.every_n_steps=1",)

# Together they write every scalar that a machine without a GPU can write.
RUNS = {
    "plain": [],
    "DAPO with dual clip and KL": [
        f"--config={METHODS / 'dapo.yaml'}",
        "--model.objective.init_args.dual_clip=3",
        "--model.loss.kl_coef=0.1",
        "--model.shaping+=asymgrpo_app.rewards.shaping.FormatPenalty",
        '--model.shaping.required=["+"]',
    ],
    "correction and adaptive entropy": [
        f"--config={METHODS / 'sampler_correction.yaml'}",
        "--model.loss.adaptive_entropy.target=0.2",
    ],
    "Clip-Cov with a second opinion": [
        f"--config={METHODS / 'clip_cov.yaml'}",
        "--rollout.second_opinion.verifier=NumericMatch",
        "--rollout.second_opinion.share=1",
    ],
    "KL-Cov, validated greedily": [
        f"--config={METHODS / 'kl_cov.yaml'}",
        *(f"--data.validation.held_out.{option}" for option in ("samples=1", "pass_at=[1]", "temperature=0")),
    ],
}

ORDINARY = {
    "always",
    "AsymGRPO",
    "at the end",
    "at the end, sets of three samples or more",
    "every n steps",
    "mixed groups in the bin",
    "objectives that clip",
    "sets of three samples or more",
    "with a validation set",
    "with each checkpoint",
}
"""What the column `written` says of tags that a run without extras has, in one step or another."""


# ---- the tags ----


@pytest.fixture(scope="module")
def documented() -> dict[str, str]:
    """Tags of docs/metrics.md, with what the column `written` says."""
    rows = re.findall(r"^\| `([^`]+)` \|(.+)\|$", (REPOSITORY / "docs/metrics.md").read_text(), re.MULTILINE)
    cells = [(tag, [cell.strip() for cell in re.split(r"(?<!\\)\|", rest)]) for tag, rest in rows]
    assert len({tag for tag, _ in cells}) == len(cells), "a tag stands there twice"
    assert all(len(rest) == 4 for _, rest in cells)
    return {tag: rest[2].replace("`", "") for tag, rest in cells}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, tuple[Any, dict[str, bool]]]:
    """Events of each run, and what was said before it of the tags that a callback may go by."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the runs are tiny, and threads wait for each other where cores are shared
    known: list[dict[str, bool]] = []
    done = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asymgrpo_app.checks.callbacks.run_tags", lambda *run: known.append(run_tags(*run)) or known[-1])
        # 36 prompts of two steps: less than a pass of the plain run's source, more than one of the others'.
        for name, options in RUNS.items():
            folder = fit(patch, tmp_path_factory.mktemp("run"), *DETAILS, *options, rows=30 if options else 100)
            done[name] = events_of(folder), known[-1]
    torch.set_num_threads(threads)
    return done


@pytest.fixture(scope="module")
def events(runs) -> dict[str, Any]:
    return {name: events for name, (events, _) in runs.items()}


def tags(events: Any) -> set[str]:
    """Scalar tags, with placeholders for the name of a validation set and for k."""
    pattern = re.compile(r"val/[^/]+/(avg|pass|maj)@\d+")
    return {
        pattern.sub(r"val/{set}/\1@{k}", tag).replace("/held_out/greedy", "/{set}/greedy")
        for tag in events.Tags()["scalars"]
    }


def on_a_gpu(monkeypatch, peak: float | None) -> dict[str, float]:
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: 3 * 1024**3)
    monkeypatch.setattr("asymgrpo_app.update.perf.peak_flops", lambda device, dtype: peak)
    trained, frozen = (
        SimpleNamespace(device=torch.device("cuda"), numel=lambda: 5 * 10**5, requires_grad=needed)
        for needed in (True, False)
    )
    policy: Any = SimpleNamespace(parameters=lambda: iter([trained, frozen]))
    group = [judged([0] * length, [0.0] * length, correct=True, truncated=False) for length in (100, 300)]
    batch = rollout_batch([group], max_tokens=300)
    batch.prompts[0].token_ids[:] = [0] * 300  # with two completions 1,000 tokens in all
    return performance(
        policy,
        batch,
        PassedTokens(forward=900, backward=600),
        step_seconds=4.0,
        update_seconds=2.0,
        dtype=torch.bfloat16,
    )


def test_documented_tags_are_the_ones_that_runs_write(events, documented, monkeypatch):
    written = set(on_a_gpu(monkeypatch, 1e12)).union(*map(tags, events.values()))
    assert written == documented.keys()


def test_the_column_written_says_what_a_plain_run_has(events, documented):
    assert tags(events["plain"]) == {tag for tag, written in documented.items() if written in ORDINARY}
    for run in events.values():
        assert tags(run) >= {tag for tag, written in documented.items() if written == "always"}


def test_tags_that_a_callback_may_go_by_are_those_of_the_run(runs):
    for events, known in runs.values():
        written = set(events.Tags()["scalars"])
        # Not among the metrics of callbacks: what is written once at the end, or beside a step.
        others = {tag for tag in written if tag.startswith("hparam/")} | {"timing_s/save_checkpoint"}
        assert written - others <= known.keys()
        assert {tag for tag, always in known.items() if always} <= written


def test_the_axis_counts_completed_steps(events):
    steps = {tag: [e.step for e in events["plain"].Scalars(tag)] for tag in events["plain"].Tags()["scalars"]}
    assert steps["reward/mean"] == steps["method/logprob_change_pos"] == steps["timing_s/save_checkpoint"] == [1, 2]
    assert steps["val/held_out/avg@8"] == steps["timing_s/testing"] == [0, 1, 2]
    assert steps["hparam/val/held_out/pass@8"] == [2]


def test_what_stands_beside_scalars_is_documented(events):
    found = events["plain"].Tags()
    names = {*found["histograms"], *found["images"], *(tag.removesuffix("/text_summary") for tag in found["tensors"])}
    text = (REPOSITORY / "docs/metrics.md").read_text()
    table = re.findall(r"^\| (?:Histograms|Text|Images) \| (\S+) \|", text, re.MULTILINE)
    assert names - {"custom_scalars__config__"} == set(table)


def test_the_custom_layout_opens_with_a_dozen_documented_charts():
    text = (REPOSITORY / "docs/metrics.md").read_text()
    table = text.split("## The tab Custom Scalars")[1].split("\n## ")[0]
    assert list(LAYOUT) == ["Watch", "The rest"]
    assert re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)[2:] == list(LAYOUT["Watch"])
    assert len(LAYOUT["Watch"]) == 12


def test_the_custom_layout_shows_every_scalar_once(documented):
    """A pattern matches where a tag begins, as TensorBoard has it."""
    patterns = [pattern for charts in LAYOUT.values() for patterns in charts.values() for pattern in patterns]
    shown = {tag: [pattern for pattern in patterns if re.match(pattern, tag)] for tag in documented}
    assert {tag for tag, found in shown.items() if len(found) != 1} == {
        t for t in documented if t.startswith("hparam/")
    }
    assert {found[0] for found in shown.values() if found} == set(patterns)


def test_troubleshooting_names_tags_that_exist(documented):
    text = (REPOSITORY / "docs/troubleshooting.md").read_text()
    groups = "|".join(sorted({tag.split("/")[0] for tag in documented}))
    named = set(re.findall(rf"`((?:{groups})/[^`]+)`", text))
    assert len(named) > 30
    for name in named:
        pattern = re.escape(name).replace(r"\*", ".*")
        assert any(re.fullmatch(pattern, tag) for tag in documented), name


def test_speed_and_memory(monkeypatch):
    values = on_a_gpu(monkeypatch, 1e12)
    assert values["perf/throughput"] == 250
    assert values["perf/max_memory_gb"] == 3
    assert values["perf/mfu"] == pytest.approx((2e6 * 900 + 3e6 * 600) / (2.0 * 1e12))
    assert "perf/mfu" not in on_a_gpu(monkeypatch, None)


# ---- the method's own panel, against plain loops ----

RIGHT_OF_EIGHT = (1, 2, 3, 4, 5, 6, 7, 8, 0)
CUT = {(1, 0), (4, 7)}
"""Completions (group, number) that were cut and are left out: a right one of two, and a wrong one of three."""


def recorded_step(monkeypatch) -> tuple[list[list[dict[str, Any]]], dict[str, float]]:
    """Completions with lp and entropy of each token, at the start of the step and now, and the scalars of the step."""
    chance = random.Random(7)
    groups: list[list[dict[str, Any]]] = []
    table = Table([], [], [], [], [])
    for group, right in enumerate(RIGHT_OF_EIGHT):
        groups.append([])
        for number in range(8):
            length = chance.randint(1, 5)
            start = [chance.uniform(-4, -0.1) for _ in range(length)]
            now = [value + chance.uniform(-0.5, 0.5) for value in start]
            entropy = [chance.uniform(0, 2) for _ in range(length)]
            counts = (group, number) not in CUT
            places = list(range(len(table.logprobs), len(table.logprobs) + length))
            groups[-1].append(
                {"right": number < right, "counts": counts, "lp": start, "now": now, "H": entropy, "places": places}
            )
            for column, values in (
                (table.start_logprobs, start),
                (table.logprobs, now),
                (table.start_entropy, entropy),
            ):
                column += values
            table.entropy += entropy
            table.reference_logprobs += start
    batch = rollout_batch(
        [[judged(c["places"], c["lp"], correct=c["right"], truncated=not c["counts"]) for c in g] for g in groups],
        max_tokens=5,
        truncated_are_wrong=False,
    )
    monkeypatch.setattr(TablePolicy, "num_parameters", lambda self: 1, raising=False)
    module = AsymGRPOModule(
        POLICY,
        total_steps=1,
        advantage=AsymGRPO(beta_pos=0.9, beta_neg=0.4),
        updates_per_step=UPDATES_PER_STEP,
        optimizer=partial(torch.optim.SGD, lr=0.0),
    )
    (step,) = run_steps(module, batch, table, monkeypatch)
    counting = [[completion for completion in group if completion["counts"]] for group in groups]
    for group in counting:
        p = fmean(completion["right"] for completion in group)
        for completion in group:
            completion["p"], completion["A"] = p, 0.0
            if 0 < p < 1:
                completion["A"] = ((1 - p) / p) ** 0.9 if completion["right"] else -((p / (1 - p)) ** 0.4)
    return counting, step.logged


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.filterwarnings("ignore:.*LeafSpec")
def test_the_panel_equals_plain_loops(monkeypatch):
    groups, logged = recorded_step(monkeypatch)
    every = [completion for group in groups for completion in group]
    ratios = [(c["A"], math.exp(b - a)) for c in every for a, b in zip(c["lp"], c["now"], strict=True)]
    expected = {
        "advantages/mean": fmean(c["A"] for c in every),
        "advantages/mass_pos": fmean(sum(abs(c["A"]) for c in g if c["right"]) / len(g) for g in groups),
        "advantages/mass_neg": fmean(sum(abs(c["A"]) for c in g if not c["right"]) / len(g) for g in groups),
        "advantages/abs_max": max(abs(c["A"]) for c in every),
        "actor/entropy": fmean(h for c in every for h in c["H"]),
        "actor/entropy_pos": fmean(h for c in every if c["right"] for h in c["H"]),
        "actor/entropy_neg": fmean(h for c in every if not c["right"] for h in c["H"]),
        "actor/ratio_pos": fmean(ratio for advantage, ratio in ratios if advantage > 0),
        "actor/ratio_neg": fmean(ratio for advantage, ratio in ratios if advantage < 0),
        "actor/ratio_max": max(ratio for _, ratio in ratios),
    }
    for low, name in ((0, "p00-25"), (0.25, "p25-50"), (0.5, "p50-75"), (0.75, "p75-100")):
        in_bin = [g for g in groups if 0 < g[0]["p"] < 1 and low <= g[0]["p"] < low + 0.25]
        expected[f"method/entropy_{name}"] = fmean(fmean(h for c in g for h in c["H"]) for g in in_bin)
        covariances = []
        for group in in_bin:
            mean_advantage = fmean(c["A"] for c in group)
            mean_lp = fmean(fmean(c["lp"]) for c in group)
            covariances.append(fmean((c["A"] - mean_advantage) * (fmean(c["lp"]) - mean_lp) for c in group))
        expected[f"method/cov_{name}"] = fmean(covariances)
    assert {tag: logged[tag] for tag in expected} == pytest.approx(expected, rel=1e-5, abs=1e-6)


# ---- text and figure ----


class Cells(HTMLParser):
    """The rows of a table as text, and every tag that is in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.seen: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "br":
            self.rows[-1][-1] += "\n"

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1] and data != "\n":
            self.rows[-1][-1] += data


def shown(completions: list[tuple[str, Verdict]], number: int, prompt: str = "2 + 2 =") -> Cells:
    """Samples as TensorBoard renders them."""
    encoded = EncodedPrompt(Prompt("by hand", prompt, {"answer": "4"}, ExactMatch()), prompt, [0])
    group = [JudgedCompletion(Completion([0], [0.0], False), text, verdict) for text, verdict in completions]
    return Cells(markdown_to_safe_html(samples_table([encoded], [group], number)))


def test_samples_show_right_and_wrong_ones_in_turn():
    right = [(f"right {i}", Verdict(True)) for i in range(3)]
    wrong = [(f"wrong {i}", Verdict(False, Status.NO_ANSWER)) for i in range(3)]
    header, *rows = shown([*wrong, *right], 4).rows
    assert header == ["verdict", "prompt", "completion", "reference"]
    assert [row[0] for row in rows] == ["right", "wrong (no_answer)"] * 2
    assert [row[2] for row in rows] == ["right 0", "wrong 0", "right 1", "wrong 1"]
    assert {(row[1], row[3]) for row in rows} == {("2 + 2 =", "4")}
    # One kind fills up where the other is missing.
    assert [row[2] for row in shown([*wrong, right[0]], 3).rows[1:]] == ["right 0", "wrong 0", "wrong 1"]
    assert [row[2] for row in shown(right, 3).rows[1:]] == ["right 0", "right 1", "right 2"]


def test_a_right_answer_that_was_cut_is_shown_as_wrong():
    encoded = EncodedPrompt(Prompt("by hand", "", {"answer": "4"}, ExactMatch()), "", [0])
    cut = JudgedCompletion(Completion([0], [0.0], truncated=True), "4", Verdict(True))
    assert Cells(markdown_to_safe_html(samples_table([encoded], [[cut]], 1))).rows[1][0].startswith("wrong")


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script><img src=x onerror=alert(1)>",
        "a | b \\| c || d",
        "two\nlines\n\n| and | a | row |\n| --- | --- | --- |",
        "a return\rin the middle",
        "**bold** _italic_ `code` ``` ~~~ # title",
        "[link](javascript:alert(1)) ![image](https://example.com/pixel.png) <https://example.com>",
        "&lt;b&gt; &amp; &#60;i&#62;",
        "\\*no\\* $x_1$ \\frac{1}{2}",
    ],
)
def test_hostile_text_is_shown_as_it_is(hostile):
    cells = shown([(hostile, Verdict(False))], 1, prompt=hostile)
    (row,) = cells.rows[1:]
    plain = hostile.replace("\r", "\n")
    assert row == ["wrong", plain, plain, "4"]
    assert cells.seen <= {"table", "thead", "tbody", "tr", "th", "td", "br"}


def test_a_long_completion_is_cut():
    (row,) = shown([("|" * 600, Verdict(False))], 1).rows[1:]
    assert row[2] == "|" * 500 + " ..."


def test_the_figure_draws_the_advantages():
    estimator = AsymGRPO(beta_pos=0.9, beta_neg=0.4)
    exponents = {"REINFORCE": (0.0, 0.0), "GRPO": (0.5, 0.5), "this run": (0.9, 0.4)}
    axes = advantage_curves(estimator, 8, 0.0).axes
    for side, axis in enumerate(axes):
        assert {line.get_label() for line in axis.lines} == exponents.keys()
        for line in axis.lines:
            kept = {"degenerate_groups": "keep"} if line.get_label() == "REINFORCE" else {}
            for p, value in zip(line.get_xdata(), line.get_ydata(), strict=True):
                k = round(8 * float(p))
                advantages = asym_advantages(
                    torch.tensor([[1.0] * k + [0.0] * (8 - k)]), *exponents[line.get_label()], **kept
                )
                assert float(value) == pytest.approx(float(advantages[0, 0 if side == 0 else -1]), abs=1e-6)
            assert [round(8 * float(p)) for p in line.get_xdata()] == list(range(1 - side, 9 - side))
