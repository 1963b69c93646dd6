"""A verifier that attacks its worker, the pool, the training process or the machine, as the completion says."""

import ctypes
import gc
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from asymgrpo_app.rewards import Verdict, Verifier

Row = Mapping[str, Any]


class Attacking(Verifier):
    """Does what the completion says and tells the outcome; judges any other completion by the row's answer."""

    def verify(self, completion: str, row: Row) -> Verdict:
        if completion in ATTACKS:
            return Verdict(correct=True, detail=str(ATTACKS[completion](row)))
        return Verdict(correct=completion == row["answer"])


# ---- the connection ----


def _serving() -> FrameType:
    frame = sys._getframe()
    while frame.f_code.co_name != "serve":
        assert frame.f_back is not None
        frame = frame.f_back
    return frame


def _send(message: bytes) -> None:
    _serving().f_locals["connection"].sendall(message)


def _reply(number: str, **fields: Any) -> bytes:
    verdict = {"correct": True, "status": "ok", "detail": ""} | fields
    return json.dumps({"number": number, "leave": False, "reply": verdict}).encode() + b"\n"


def _own_number() -> str:
    return str(_serving().f_locals["number"])


def _late_surplus(row: Row) -> None:
    connection, message = _serving().f_locals["connection"], _reply(_own_number())
    threading.Timer(0.02, lambda: connection.sendall(message)).start()


# ---- processes ----


def _session(row: Row) -> int:
    return subprocess.Popen(["sleep", "600"], start_new_session=True).pid


def _double_fork(row: Row) -> int:
    """A process whose parent has ended, in a session of its own."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        grandchild = os.fork()
        if grandchild == 0:
            time.sleep(600)
        os.write(theirs, b"%d\n" % grandchild)
        os._exit(0)
    os.waitpid(child, 0)
    return int(os.read(ours, 20))


def _many(row: Row) -> str:
    """Processes in sessions of their own that ignore what can be ignored, one the parent of the next."""
    ours, theirs = os.pipe()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork() == 0:
        for _ in range(row["many"]):
            os.setsid()
            os.write(theirs, b"%d " % os.getpid())
            if os.fork():
                time.sleep(600)
        os.write(theirs, b"\n")
        time.sleep(600)
    with os.fdopen(ours) as found:
        os.close(theirs)
        return found.readline().strip()


def _ptrace(row: Row) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, row["trainer"], 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")


# ---- the machine ----


def _write(path: str | Path) -> None:
    Path(path).write_text("x")


def _huge_file(row: Row) -> None:
    with tempfile.TemporaryFile() as file:
        for _ in range(40):
            file.write(bytes(2**20))


def _many_files(row: Row) -> None:
    files = [Path(os.devnull).open() for _ in range(1_000)]  # noqa: SIM115
    del files


def _tidy_file(row: Row) -> int:
    with tempfile.NamedTemporaryFile() as file:
        return file.write(b"x")


def _socket(family: int, kind: int, address: Any, act: str = "connect") -> None:
    with socket.socket(family, kind) as opened:
        getattr(opened, act)(address)


def _environment(row: Row) -> str:
    return " ".join([*os.environ.values(), Path("/proc/self/environ").read_text()])[-190:].replace("\0", " ")


def _own_limits(row: Row) -> str:
    kinds = (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)
    return " ".join([*(str(resource.getrlimit(kind)) for kind in kinds), Path("/proc/self/oom_score_adj").read_text()])


def _left_with_the_time_set_back(row: Row) -> None:
    folder = Path(tempfile.gettempdir())
    before = folder.stat()
    (folder / "left").touch()
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))


def _tidy_folder(row: Row) -> int:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "x").touch()
    return os.getpid()


class KeepsWhatItLoads(Attacking):
    """Makes a file and starts a process as it is loaded; both serve all items."""

    def prepare(self) -> None:
        Path(tempfile.gettempdir(), "cache").touch()
        subprocess.Popen(["sleep", "600"])


ATTACKS: dict[str, Callable[[Row], Any]] = {
    "leave a file and set the time back": _left_with_the_time_set_back,
    "a tidy folder": _tidy_folder,
    "process number": lambda row: os.getpid(),
    "limits of the trainer": lambda row: resource.prlimit(row["trainer"], resource.RLIMIT_NOFILE, (3, 3)),
    "own limits again": lambda row: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    "look up a name": lambda row: socket.getaddrinfo("judge.example", 80),
    "surplus": lambda row: _send(_reply(_own_number()) * 2),
    "late surplus": _late_surplus,
    "wrong number": lambda row: _send(_reply("0" * 16)),
    "no number": lambda row: _send(b'{"reply": {"reason": null}, "leave": false}\n'),
    "huge reply": lambda row: _send(b"x" * 1_000_000),
    "unreadable reply": lambda row: _send(b"\x00\xff\n"),
    "deep reply": lambda row: _send(b"[" * 60_000 + b"\n"),
    "reply of another kind": lambda row: _send(_reply(_own_number(), correct=7)),
    "half a reply": lambda row: (_send(b'{"numb'), time.sleep(600)),
    "any descriptor": lambda row: [os.write(fd, b"\n") for fd in range(3, 20) if _is_socket(fd)],
    "a number found in memory": lambda row: len(gc.get_objects()) and _send(_reply(_own_number(), correct=False)),
    "session": _session,
    "double fork": _double_fork,
    "many": _many,
    "kill the parent": lambda row: (os.kill(os.getppid(), signal.SIGKILL), time.sleep(600)),
    "signal to the trainer": lambda row: os.kill(row["trainer"], signal.SIGCONT),
    "signal to the parent": lambda row: os.kill(os.getppid(), signal.SIGCONT),
    "ptrace": _ptrace,
    "memory of the trainer": lambda row: Path(f"/proc/{row['trainer']}/mem").open("rb").close(),
    "environment of the trainer": lambda row: Path(f"/proc/{row['trainer']}/environ").read_bytes(),
    "command of the trainer": lambda row: Path(f"/proc/{row['trainer']}/cmdline").read_bytes(),
    "close everything": lambda row: os.closerange(0, 100),
    "another program": lambda row: os.execv("/bin/true", ["true"]),
    "another folder": lambda row: os.chdir("/usr"),
    "environment": _environment,
    "limits": _own_limits,
    "huge file": _huge_file,
    "many files": _many_files,
    "write here": lambda row: _write("written"),
    "write to the run": lambda row: _write(row["folder"] + "/written"),
    "write at home": lambda row: _write(Path.home() / ".asymgrpo-written"),
    "write to the temporary folder of all": lambda row: _write("/tmp/asymgrpo-written"),
    "write beside modules": lambda row: _write(Path(json.__file__).with_name("written.py")),
    "remove": lambda row: Path(row["folder"], "secret").unlink(),
    "truncate": lambda row: os.truncate(row["folder"] + "/secret", 0),
    "rename": lambda row: Path(row["folder"], "secret").rename(row["folder"] + "/other"),
    "link": lambda row: os.link(row["folder"] + "/secret", tempfile.gettempdir() + "/secret"),
    "read a secret": lambda row: Path(row["folder"], "secret").read_text(),
    "read through a link": lambda row: _through_link(row),
    "read what is beside a module": lambda row: Path(row["folder"], "secret").read_text(),
    "import what is beside a secret": lambda row: __import__("beside_a_secret").VALUE,
    "leave a file": lambda row: (_write(Path(tempfile.gettempdir(), "left")), tempfile.gettempdir())[1],
    "look for files": lambda row: [path.name for path in Path(tempfile.gettempdir()).iterdir()],
    "a tidy temporary file": _tidy_file,
    "a tidy program": lambda row: subprocess.run(["true"], check=True).returncode,
    "connect": lambda row: _socket(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", row["port"])),
    "connect by IPv6": lambda row: _socket(socket.AF_INET6, socket.SOCK_STREAM, ("::1", row["port"])),
    "bind": lambda row: _socket(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0), "bind"),
    "datagram": lambda row: _socket(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", row["port"])),
    "abstract socket": lambda row: _socket(socket.AF_UNIX, socket.SOCK_STREAM, row["abstract"]),
    "socket in a folder": lambda row: _socket(socket.AF_UNIX, socket.SOCK_STREAM, "/run/docker.sock"),
    "connect from a child": lambda row: (
        subprocess.run(
            [sys.executable, "-c", f"import socket; socket.create_connection(('127.0.0.1', {row['port']}))"],
            stderr=subprocess.DEVNULL,
        ).returncode
    ),
}


def _through_link(row: Row) -> str:
    link = Path(tempfile.gettempdir(), "link")
    link.symlink_to(Path(row["folder"], "secret"))
    return link.read_text()


def _is_socket(descriptor: int) -> bool:
    try:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink()).startswith("socket:")
    except OSError:
        return False
