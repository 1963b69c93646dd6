"""Whatever stops a run, in whatever phase: the run that goes on becomes, to the last bit, the undisturbed one."""

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer

from asymgrpo_app.callbacks import export, rollout, safe_stop
from asymgrpo_app.checkpoints.plugin import WholeCheckpointIO
from asymgrpo_app.cli import main
from asymgrpo_app.module import AsymGRPOModule
from asymgrpo_app.runtime.stopping import StopWatch, switch
from asymgrpo_app.update import policy_module
from tests.support.events import repeated_scalars
from tests.support.everything import STEPS, everything
from tests.support.paths import QUICKSTART
from tests.support.seeded_engine import SeededEngine
from tests.support.states import assert_same, saved_steps, state

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")


class Engine(SeededEngine):
    """An engine of this file's own, of which a test may replace a method."""


class Seen(Callback):
    """Keeps the trainer, for a test that stops the run as a callback would."""

    trainer: Any = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        Seen.trainer = trainer


def by_callback() -> None:
    Seen.trainer.should_stop = True


def by_time_limit() -> None:
    (watch,) = (thread for thread in threading.enumerate() if isinstance(thread, StopWatch))
    watch._deadline = time.monotonic()
    while switch.cause is None:  # the handler raises in here where the work may be given up
        time.sleep(0.01)


def by_signal(number: signal.Signals) -> Callable[[], None]:
    return lambda: signal.raise_signal(number)


CAUSES: dict[str, tuple[int, Callable[[], None]]] = {
    "SIGTERM": (143, by_signal(signal.SIGTERM)),
    "SIGINT": (130, by_signal(signal.SIGINT)),
    "SIGHUP": (129, by_signal(signal.SIGHUP)),
    "SIGUSR1": (75, by_signal(signal.SIGUSR1)),
    "SIGUSR2": (75, by_signal(signal.SIGUSR2)),
    "time_limit": (75, by_time_limit),
    "callback": (0, by_callback),
}
# The function, the number of its call and whether the stop is asked for after it; the steps that are saved then, and
# those that are if a callback asks: it lets the step end. A run validates at first and after every second step.
PHASES: dict[str, tuple[Any, str, int, bool, list[int], list[int]]] = {
    "loading": (policy_module, "load_policy", 1, True, [], []),
    "first validation": (AsymGRPOModule, "validation_step", 1, False, [], []),
    "sampling": (Engine, "generate", 4, False, [1], [2]),  # validation, step, refill, step
    "verifying": (rollout, "judge", 4, False, [1], [2]),
    "forward and backward": (AsymGRPOModule, "manual_backward", 5, False, [2], [3]),
    "between two updates": (LightningOptimizer, "step", 5, True, [3], [3]),
    "end of the step": (AsymGRPOModule, "training_step", 3, True, [3], [3]),
    "validation": (AsymGRPOModule, "validation_step", 3, False, [4], [4]),
    "end of validation": (AsymGRPOModule, "on_validation_epoch_end", 3, True, [4], [4]),
    "saving": (WholeCheckpointIO, "save_checkpoint", 1, False, [3], [3]),
    "exporting": (export, "write_export", 1, False, [6], [6]),
}
QUICK = [("SIGHUP", "sampling"), ("SIGUSR1", "between two updates"), ("callback", "forward and backward")]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return everything(tmp_path_factory.mktemp("config"))


@pytest.fixture(autouse=True)
def _engine(monkeypatch):
    monkeypatch.setattr(rollout, "VLLMEngine", Engine)
    monkeypatch.setattr(safe_stop, "age_s", lambda: 0.0)  # this process is older than the run
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    all_kept = ["--checkpoint.every_n_steps=1", "--checkpoint.keep=null"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "VLLMEngine", SeededEngine)
        assert main(["fit", *QUICKSTART, f"--config={config}", f"--run_dir={folder}", *all_kept]) == 0
    return folder


def asking(function: Callable[..., Any], number: int, ask: Callable[[], None], *, after: bool) -> Callable[..., Any]:
    """The function, with a stop that is asked for in its call of this number (from 1)."""
    calls = 0

    def wrapper(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and not after:
            ask()
        result = function(*arguments, **named)
        if calls == number and after:
            ask()
        return result

    return wrapper


def assert_is(run_dir: Path, undisturbed: Path, cause: str) -> None:
    found, expected = state(run_dir, STEPS), state(undisturbed, STEPS)
    assert_same(found, expected)
    scalars, wanted = repeated_scalars(run_dir), repeated_scalars(undisturbed)
    if cause == "callback":  # it has the last step before the stop validated, too
        for values in (scalars, wanted):
            for tag in [tag for tag in values if tag.startswith("val/")]:
                del values[tag]
    assert scalars == wanted


@pytest.mark.parametrize(
    ("cause", "phase"),
    [
        pytest.param(cause, phase, marks=[] if (cause, phase) in QUICK else pytest.mark.long)
        for cause in CAUSES
        for phase in PHASES
    ],
)
def test_a_stopped_run_goes_on_as_the_undisturbed_one(cause, phase, config, tmp_path, undisturbed, monkeypatch, capsys):
    run = tmp_path / "run"
    code, ask = CAUSES[cause]
    owner, function, number, after, kept, kept_by_callback = PHASES[phase]
    kept = kept_by_callback if cause == "callback" else kept
    command = ["fit", *QUICKSTART, f"--config={config}", f"--run_dir={run}", "--time_limit=01:00:00"]
    command += ["--checkpoint.every_n_steps=3"] if phase == "saving" else []
    with monkeypatch.context() as patch:
        patch.setattr(owner, function, asking(getattr(owner, function), number, ask, after=after))
        expected = 0 if phase == "exporting" else code  # all work is done
        assert main([*command, f"--trainer.callbacks={__name__}.Seen"]) == expected
    said = capsys.readouterr()
    assert saved_steps(run) == kept
    if kept:
        assert_same(state(run, kept[0]), state(undisturbed, kept[0]))
    if cause == "callback" and kept != [STEPS]:
        assert f"Run stopped early: RL step {kept[0] if kept else 0} of {STEPS}, by Seen, without a reason." in said.out
    if expected:
        assert f"asymgrpo: stopped by {cause}." in said.err
    assert (run / "export").exists() == (expected == 0 and kept != [])
    assert (run / "config.yaml").exists() == (kept != [])
    assert main([*command, "--ckpt_path=last"]) == 0
    assert_is(run, undisturbed, cause)
    assert (run / "export/model.safetensors").exists()
