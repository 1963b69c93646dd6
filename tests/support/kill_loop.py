"""One run with real vLLM that is killed again and again, each time resumed, and compared with the undisturbed run.

python -m tests.support.kill_loop FOLDER [--kills N] [--terms N] [--seed N] prints what it does.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from asymgrpo_app.checkpoints.files import verify
from asymgrpo_app.checkpoints.folder import checkpoint_folder, list_checkpoints
from tests.support.events import repeated_scalars
from tests.support.paths import QUICKSTART, REPOSITORY
from tests.support.states import assert_same, state

# The model is small, and one thread never waits for another on a machine that does something else as well.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
_END_S = 10.0  # the verifiers' launcher looks once a second whether its client is still there
_ATTEMPT_S, _WHOLE_S = 300.0, 1200.0


@dataclass
class Attempt:
    """A process of the run, and what belongs to it.

    Attributes:
        process: The command.
        log: What it says.
        members: It and all that it started, as far as seen.
        shared: Shared memory that they had open, as paths under /dev/shm.
    """

    process: subprocess.Popen[bytes]
    log: Path
    members: set[psutil.Process] = field(default_factory=set)
    shared: set[Path] = field(default_factory=set)

    def look(self) -> None:
        """Note what belongs to it now."""
        with contextlib.suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.process.pid)
            self.members |= {own, *own.children(recursive=True)}
        for member in self.members:
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{member.pid}/maps").read_text().splitlines()
                mapped = {line.split(maxsplit=5)[-1] for line in lines if "/dev/shm/" in line}
                self.shared |= {Path(path) for path in mapped if not path.endswith("(deleted)")}

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Wait until something holds; False if the process ended before."""
        end = time.monotonic() + _ATTEMPT_S
        while not condition():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.001)
        return True

    def end(self, seconds: float = 60) -> int:
        """Wait for its end, and check that nothing of it is left; the exit code, negative for a signal."""
        code = self.process.wait(seconds)
        _, alive = psutil.wait_procs(self.members, timeout=_END_S)
        assert not alive, [(member.pid, member.cmdline()) for member in alive]
        left = [path for path in self.shared if path.exists()]
        assert not left, left
        return code


class KillLoop:
    """The run, its copy that nobody disturbs, and the loop.

    Args:
        folder: Where everything goes.
        kills: How often it is ended by SIGKILL.
        terms: How often by SIGTERM besides.
        seed: Decides order and moments.
    """

    def __init__(self, folder: Path, kills: int, terms: int, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.run_dir = folder / "killed"
        self.ends = [signal.SIGKILL] * kills + [signal.SIGTERM] * terms
        self.random.shuffle(self.ends)
        self.steps = 5 * len(self.ends) // 2 + 4  # hardly any attempt makes more than two or three
        self.start_s, self.step_s = 10.0, 1.0
        self.moments = {
            "start": self._in_the_start,
            "step": self._in_a_step,
            "saving": self._while_saving,
            "saved": self._just_saved,
        }
        self.seen: dict[str, int] = dict.fromkeys(self.moments, 0)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tmp").mkdir(exist_ok=True)

    def run(self) -> None:
        """All of it.

        Raises:
            AssertionError: Something was lost, damaged or left behind.
        """
        began = time.monotonic()
        whole = self.start("whole", self.folder / "whole")
        whole.wait_for(lambda: bool(list_checkpoints(self.folder / "whole")))
        self.start_s = time.monotonic() - began
        assert whole.end(_WHOLE_S) == 0, whole.log.read_text()
        self.step_s = (time.monotonic() - began - self.start_s) / (self.steps - 1)
        print(f"undisturbed: {self.steps} steps of {self.step_s:.2f} s after {self.start_s:.1f} s", flush=True)
        for number, how in enumerate(self.ends):
            self.disturb(number, how)
        last = self.start("last", self.run_dir)
        assert last.end(_WHOLE_S) == 0, last.log.read_text()
        self.compare()

    def disturb(self, number: int, how: signal.Signals) -> None:
        """Let the run go on, and end it at some moment."""
        # Two of seven hit the writing of a checkpoint, one the time after it, one the start.
        moment = self.random.choice(["start", "step", "step", "step", "saving", "saving", "saved"])
        before = max(list_checkpoints(self.run_dir), default=0)
        attempt = self.start(str(number), self.run_dir)
        assert self.moments[moment](attempt, before), attempt.log.read_text()
        attempt.look()
        attempt.process.send_signal(how)
        code = attempt.end()
        assert code == (-how if how == signal.SIGKILL else 128 + how), attempt.log.read_text()
        self.seen[moment] += 1
        checkpoints = list_checkpoints(self.run_dir)
        for path in checkpoints.values():
            verify(path)
        said = attempt.log.read_text()
        assert not [word for word in ("Skipped:", "Traceback") if word in said], said
        reached = max(checkpoints, default=0)
        assert reached >= before
        parts = len(list(checkpoint_folder(self.run_dir).glob(".*.part")))
        print(f"{number}: {how.name} in {moment}, step {before} -> {reached}, half-written files {parts}", flush=True)

    def compare(self) -> None:
        """The run is the undisturbed one, and nothing else lies about."""
        whole = self.folder / "whole"
        assert_same(state(self.run_dir, self.steps), state(whole, self.steps))
        assert repeated_scalars(self.run_dir) == repeated_scalars(whole)
        names = {path.relative_to(self.run_dir).as_posix() for path in self.run_dir.rglob("*") if path.is_file()}
        expected = {path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()}
        extra = {name for name in names - expected if not name.startswith(("tensorboard/events.", "config.resumed-"))}
        assert not extra, extra
        assert not {name for name in expected - names if not name.startswith("tensorboard/events.")}
        left = list((self.folder / "tmp").iterdir())
        assert not left, left

    def start(self, name: str, run_dir: Path) -> Attempt:
        """The command, which begins or goes on."""
        arguments = [
            "fit",
            *QUICKSTART,
            f"--steps={self.steps}",
            f"--run_dir={run_dir}",
            "--ckpt_path=last",
            "--checkpoint.every_n_steps=1",
            "--data.prompts_per_step=16",
            "--data.validation.countdown.limit=8",
            "--trainer.val_check_interval=4",
            "--model.updates_per_step=2",
            "--model.lr_scheduler=torch.optim.lr_scheduler.ExponentialLR",
            "--model.lr_scheduler.gamma=0.99",
            "--rollout.dynamic_sampling={max_rounds: 1}",
            "--rollout.engine.max_num_seqs=128",
            "--data.train=tests.support.isolated_countdown.IsolatedCountdown",
        ]
        log = self.folder / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "asymgrpo_app", *arguments],
                cwd=REPOSITORY,
                env={**os.environ, **_ENVIRONMENT, "TMPDIR": str(self.folder / "tmp"), "PYTHONPATH": str(REPOSITORY)},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        return Attempt(process, log)

    # ---- moments ----

    def _in_the_start(self, attempt: Attempt, before: int) -> bool:
        """Import, engine start, or the first steps."""
        end = time.monotonic() + self.random.uniform(0, self.start_s)
        return attempt.wait_for(
            lambda: time.monotonic() >= end or max(list_checkpoints(self.run_dir), default=0) > before + 1
        )

    def _in_a_step(self, attempt: Attempt, before: int) -> bool:
        delay = self.random.uniform(0, self.step_s)
        return self._new_checkpoints(attempt, before) and self._later(attempt, delay)

    def _while_saving(self, attempt: Attempt, before: int) -> bool:
        folder = checkpoint_folder(self.run_dir)
        delay = self.random.uniform(0, 0.03)
        return (
            self._new_checkpoints(attempt, before)
            and attempt.wait_for(lambda: any(folder.glob(".step-*.part")))
            and self._later(attempt, delay)
        )

    def _just_saved(self, attempt: Attempt, before: int) -> bool:
        delay = self.random.uniform(0, 0.02)  # older checkpoints are being removed
        return self._new_checkpoints(attempt, before) and self._later(attempt, delay)

    def _new_checkpoints(self, attempt: Attempt, before: int) -> bool:
        number = self.random.choice([1, 1, 2])
        attempt.wait_for(lambda: max(list_checkpoints(self.run_dir), default=0) > before)
        attempt.look()  # takes too long to be done later
        return attempt.wait_for(lambda: max(list_checkpoints(self.run_dir), default=0) >= before + number)

    def _later(self, attempt: Attempt, seconds: float) -> bool:
        end = time.monotonic() + seconds
        return attempt.wait_for(lambda: time.monotonic() >= end)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--terms", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    KillLoop(arguments.folder, arguments.kills, arguments.terms, arguments.seed).run()


if __name__ == "__main__":
    main()
