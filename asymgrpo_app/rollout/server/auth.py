"""Token of sampler servers: where it is kept, and how client and server prove to each other that they know it."""

import hmac
import os
import re
import secrets
import stat
from pathlib import Path

from asymgrpo_app.errors import UserError

TOKEN_VARIABLE = "ASYMGRPO_TOKEN"

_LONGEST_FILE = 4096


class ServerToken:
    """The token, read again whenever its file changes: a new one takes effect without a restart.

    A client sends the token itself only to a server that has proven to know it. Both sides prove it with an HMAC of a
    random nonce, the client first: `Authorization: Proof <nonce>:<hmac>`.

    Args:
        file: File with the token; None: `$ASYMGRPO_TOKEN`.
        key: The option that names the file, for messages.

    Raises:
        UserError: There is none, it is too short to be a secret, or the file cannot be read or is open to others.
    """

    def __init__(self, file: str | None, key: str) -> None:
        self._file = file
        self._key = key
        self._changed = self._stamp()
        self._value = read_token(file, key)

    @property
    def value(self) -> str:
        """The token as it is now. While its file is missing or holds none, the last one stays."""
        if self._file is not None and (changed := self._stamp()) not in (self._changed, None):
            try:
                self._value = read_token(self._file, self._key)
            except UserError:
                return self._value
            self._changed = changed
        return self._value

    def matches(self, header: str | None) -> bool:
        """Whether an `Authorization` header has the token."""
        return header is not None and secrets.compare_digest(header.encode("latin-1"), f"Bearer {self.value}".encode())

    def prove(self, header: str | None) -> str | None:
        """The server's proof for a client whose `Authorization` header proves the token; None for any other."""
        found = re.fullmatch("Proof ([0-9a-f]{64}):([0-9a-f]{64})", header or "")
        if found is None or not secrets.compare_digest(found[2], proof_of(self.value, "client", found[1])):
            return None
        return proof_of(self.value, "server", found[1])

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = Path(self._file or "").stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino


def proof_of(token: str, role: str, nonce: str) -> str:
    """Proof of knowing the token, by the client or the server."""
    return hmac.new(token.encode(), f"asymgrpo {role} {nonce}".encode(), "sha256").hexdigest()


def read_token(token_file: str | None, key: str) -> str:
    """The token: the content of the file, or `$ASYMGRPO_TOKEN`.

    Args:
        token_file: Path, or None.
        key: The option that names the file, for the message.

    Raises:
        UserError: There is none, it is too short to be a secret, or the file cannot be read or is open to others.
    """
    token = read_secret(token_file, key) if token_file else os.environ.get(TOKEN_VARIABLE, "")
    source = f"{key} {token_file}" if token_file else f"the environment variable {TOKEN_VARIABLE}"
    if not re.fullmatch("[!-~]{16,}", token):
        raise UserError(
            f"A sampler server needs a token of at least 16 printable ASCII characters without spaces, and {source} "
            f"holds none: set the variable or {key}."
        )
    return token


def read_secret(path: str, key: str) -> str:
    """The text of a small file that its owner, and at most its group, can read.

    Args:
        path: Path.
        key: The option that names the file, for the message.

    Raises:
        UserError: It cannot be read, is no regular file or is open to others.
    """
    try:
        # A pipe would keep the opener waiting for a writer.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise UserError(f"{key} {path} is no regular file.")
            if mode & 0o027:  # its group may read it, as in a volume of Kubernetes
                raise UserError(f"{key} {path} is open to other users: chmod 600 {path}.")
            return file.read(_LONGEST_FILE).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key} {path} cannot be read ({type(error).__name__}).") from error
