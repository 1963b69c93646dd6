"""What a run says while it trains: a bar on a terminal, lines elsewhere."""

import os
import pty
import re
import struct
import sys
import termios
from fcntl import ioctl
from threading import Thread

import pytest

from tests.support.scripted_engine import fit


def on_a_terminal(columns: int, call) -> str:
    """What `call` prints on a terminal of so many columns."""
    reader, writer = pty.openpty()
    ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    pieces: list[bytes] = []

    def read() -> None:
        while True:
            try:
                pieces.append(os.read(reader, 65536))
            except OSError:  # the other end was closed
                return

    thread = Thread(target=read)
    thread.start()
    with pytest.MonkeyPatch.context() as patch, os.fdopen(writer, "w") as terminal:
        patch.setattr(sys, "stdout", terminal)
        call()
    thread.join()
    os.close(reader)
    return b"".join(pieces).decode()


def test_the_bar(monkeypatch, tmp_path):
    printed = on_a_terminal(80, lambda: fit(monkeypatch, tmp_path))
    shown = [part.strip() for part in re.split(r"[\r\n]", printed) if part.startswith("step ")]
    assert max(map(len, shown)) <= 80
    # Half of all completions are right.
    values = r"reward=0\.500, val=0\.500, entropy=\d\.\d{3}, s/step=\d+\.\d{3}"
    assert any(re.fullmatch(rf"step 1/2 \|.+\| \d\d:\d\d left, {values}", line) for line in shown)
    assert re.fullmatch(rf"step 2/2 \|.+\| 00:00 left, {values}", shown[-1])
    assert any(re.search(r"\| sampler warms up, .* left", line) for line in shown)
    # What else is said stands on lines of its own.
    assert "\rStarting vLLM ...\r\n" in printed
    assert printed.index("Run finished") > printed.rindex(shown[-1])


def test_lines_without_a_terminal(monkeypatch, tmp_path, capsys):
    fit(monkeypatch, tmp_path, "--steps=12", "--trainer.val_check_interval=12")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    values = r"reward 0\.500  val 0\.500  entropy \d\.\d{3}  s/step \d+\.\d{3}"
    assert re.fullmatch(rf"step 10/12  {values}  left \d\d:\d\d", lines[0])
    assert re.fullmatch(rf"step 12/12  {values}  left 00:00", lines[1])
    assert len(lines) == 2
