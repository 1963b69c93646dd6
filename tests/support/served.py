"""A real sampler server in a process of its own, as `asymgrpo serve` starts it."""

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.certificate import Certificate
from tests.support.paths import REPOSITORY


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Served:
    """`asymgrpo serve` for the quick start's policy. It may be killed and started again, on the same port.

    Args:
        folder: Where its token, its weights and its log are.
        options: Further ones for `asymgrpo serve`.
        certificate: For TLS.
    """

    def __init__(self, folder: Path, *options: str, certificate: Certificate | None = None) -> None:
        self.folder = folder
        self.options = [*options]
        self.port = free_port()
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self.port}"
        self.certificate = certificate
        if certificate is not None:
            self.options += [f"--certificate_file={certificate.file}", f"--key_file={certificate.key}"]
        self.token_file = folder / "token"
        self.weights = folder / "weights"
        self.weights.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"serve-{self.port}.log"
        self.start()

    @property
    def for_the_run(self) -> list[str]:
        """Options of a run that samples from it."""
        return [
            "--rollout.sampler=server",
            f"--rollout.server.urls=[{self.url}]",
            f"--rollout.server.token_file={self.token_file}",
            f"--rollout.server.weights_folder={self.weights}",
            *([f"--rollout.server.certificate_file={self.certificate.file}"] if self.certificate else []),
        ]

    def start(self) -> None:
        """Start it; it answers some ten seconds later."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *[sys.executable, "-m", "asymgrpo_app", "serve", f"--port={self.port}"],
                    f"--token_file={self.token_file}",
                    f"--weights_folder={self.weights}",
                    f"--config={REPOSITORY / 'configs/quickstart.yaml'}",
                    f"--model.policy={REPOSITORY / 'data/countdown_base'}",
                    *self.options,
                ],
                stdout=log,
                stderr=log,
                cwd=REPOSITORY,
                start_new_session=True,
            )

    def wait(self, seconds: float = 240) -> None:
        """Until it answers."""
        until = time.monotonic() + seconds
        while True:
            try:
                self.ask("/health")
                return
            except (OSError, FileNotFoundError) as error:
                if self.process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"the server did not start: {self.log.read_text()[-2000:]}") from error
                time.sleep(0.2)

    def ask(self, path: str, *, token: bool = True, method: str = "GET", body: Any = None) -> tuple[int, str]:
        """Status and text of an answer."""
        headers = {"Authorization": f"Bearer {self.token_file.read_text().strip()}"} if token else {}
        data = None if body is None else json.dumps(body).encode()
        headers |= {} if body is None else {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        trusted = ssl.create_default_context(cafile=self.certificate.file) if self.certificate else None
        if trusted is not None:
            trusted.check_hostname = False
        try:
            with urllib.request.urlopen(request, timeout=20, context=trusted) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def kill(self) -> None:
        """As the kernel does when memory runs out: the server's own process, and nothing else, by SIGKILL."""
        self.process.kill()
        self.process.wait()

    def members(self) -> list[int]:
        """Processes of the server that are alive."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[3]) == self.process.pid and fields[0] != "Z":  # its session
                    found.append(int(entry.name))
        return found

    def close(self) -> None:
        """End it and all that belongs to it."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for member in self.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        end = time.monotonic() + 10
        while self.members() and time.monotonic() < end:  # a killed process takes a moment to be gone
            time.sleep(0.05)
