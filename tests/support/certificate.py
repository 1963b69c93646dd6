"""A self-signed certificate, made as docs/rollouts.md says."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import REPOSITORY


@dataclass(frozen=True)
class Certificate:
    """Files of a certificate and of its key."""

    file: Path
    key: Path


def made_certificate(folder: Path) -> Certificate:
    """A fresh one, by the command in the documentation."""
    folder.mkdir()
    (command,) = re.findall(r"^openssl req .*(?:\\\n.*)*", (REPOSITORY / "docs/rollouts.md").read_text(), re.MULTILINE)
    subprocess.run(["bash", "-c", f"umask 077; {command}"], cwd=folder, check=True, capture_output=True)
    return Certificate(folder / "server.pem", folder / "server.key")
