"""The sandbox of workers: no network, and no files but what their libraries consist of and a private folder.

Two parts of Linux make it, and neither needs privileges: Landlock denies files, TCP and signals by rules, and a filter
of system calls (seccomp) denies sockets of every kind, which Landlock does not.
"""

import ctypes
import errno
import os
import platform
import stat
import struct
import sys
from collections.abc import Iterable
from typing import Any

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ABI_VERSION = 1
_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE = 1 << 14
_RIGHTS_OF_ABI = (0, 13, 14, 15, 15, 16)  # number of rights on files that a version of Landlock knows
_TRUNCATE_VERSION = 3
_TCP = 0b11  # bind and connect, from version 4
_SCOPES = 0b11  # abstract Unix sockets and signals, from version 6

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_PR_SET_NO_NEW_PRIVS = 38
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _DENY = 0x7FFF0000, 0x00050000 | errno.EACCES
_OTHER_NUMBERING = 0x40000000  # the system calls of x32
# socket, io_uring_setup (which opens sockets, too), ptrace, add_key, request_key, keyctl; with the id of the machine
_DENIED_CALLS = {
    "x86_64": (0xC000003E, (41, 425, 101, 248, 249, 250)),
    "aarch64": (0xC00000B7, (198, 425, 117, 217, 218, 219)),
}
_TRUNCATE_CALL = {"x86_64": 76, "aarch64": 45}  # denied where Landlock does not know it yet
_LIMITS_CALL = {"x86_64": 302, "aarch64": 261}  # prlimit64, which may ask for this process alone: number 0
_FIRST_ARGUMENT = 16  # place of its lower half, all that counts of a process's number

_CAPABILITIES_VERSION = 0x20080522
_KEPT_CAPABILITIES = 1 << 1 | 1 << 2  # of root: to read files of others, which Landlock then denies or allows


def missing() -> str | None:
    """Why this machine offers no sandbox; None if it offers one."""
    if sys.platform != "linux":
        return "it is not Linux"
    if platform.machine() not in _DENIED_CALLS:
        return f"the machine type {platform.machine()} is not known to it"
    if _landlock_version() < 1:
        return "its kernel has no Landlock, or does not let this process use it"
    return None


def enter(readable: Iterable[str], private: str) -> None:
    """Confine this process and all that it starts, for good.

    Args:
        readable: Files and folders that may be read and executed; a folder that ends with `/` may only be listed.
            Those that do not exist are left out.
        private: Folder that may be written to.

    Raises:
        OSError: The kernel refuses; `missing` says whether that is to be expected.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _restrict_files(libc, readable, private)
    _drop_capabilities(libc)
    _filter_calls(libc)


def _landlock_version() -> int:
    return int(ctypes.CDLL(None).syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ABI_VERSION))


def _restrict_files(libc: Any, readable: Iterable[str], private: str) -> None:
    version = _landlock_version()
    rights = (1 << _RIGHTS_OF_ABI[min(version, len(_RIGHTS_OF_ABI) - 1)]) - 1
    handled = struct.pack("QQQ", rights, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = _checked(libc.syscall(_CREATE_RULESET, handled, ctypes.c_size_t(size), 0))
    read = _EXECUTE | _READ_FILE | _READ_DIR
    _allow(libc, rules, private, rights)
    _allow(libc, rules, os.devnull, (_READ_FILE | _WRITE_FILE | _TRUNCATE) & rights)
    for path in readable:
        _allow(libc, rules, path, _READ_DIR if path.endswith("/") else read)
    _checked(libc.syscall(_RESTRICT_SELF, rules, 0))
    os.close(rules)


def _allow(libc: Any, rules: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _EXECUTE | _READ_FILE | _WRITE_FILE | _TRUNCATE
        rule = struct.pack("=Qi", rights, descriptor)
        _checked(libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, rule, 0))
    finally:
        os.close(descriptor)


def _drop_capabilities(libc: Any) -> None:
    """Take the powers of root, if this process has them."""
    header = struct.pack("Ii", _CAPABILITIES_VERSION, 0)
    held = ctypes.create_string_buffer(24)  # effective, permitted, inheritable; then the same of higher numbers
    _checked(libc.capget(header, held))
    kept = [number & _KEPT_CAPABILITIES for number in struct.unpack("3I", held.raw[:12])]
    _checked(libc.capset(header, struct.pack("6I", *kept, 0, 0, 0)))


def _filter_calls(libc: Any) -> None:
    machine, calls = _DENIED_CALLS[platform.machine()]
    denied = list(calls)
    if _landlock_version() < _TRUNCATE_VERSION:
        denied.append(_TRUNCATE_CALL[platform.machine()])
    # A jump counts the instructions to skip if the comparison holds, and if it does not.
    to_denial = len(denied) + 4  # from the check of the machine's successor
    program = [(_LOAD, 0, 0, 4), (_EQUAL, 0, to_denial + 2, machine), (_LOAD, 0, 0, 0)]
    program.append((_AT_LEAST, to_denial, 0, _OTHER_NUMBERING))
    program += [(_EQUAL, to_denial - 1 - index, 0, number) for index, number in enumerate(denied)]
    program += [(_EQUAL, 0, 2, _LIMITS_CALL[platform.machine()]), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_EQUAL, 0, 1, 0)]
    program += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _DENY)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    whole = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    _checked(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, whole, 0, 0))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
