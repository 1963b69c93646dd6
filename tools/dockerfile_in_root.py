#!/usr/bin/env python3
"""Carry out a target of the Dockerfile without a container engine, in a clean Debian root, and try what it would start.

The root that debootstrap makes stands in for the base image; every ENV, WORKDIR, USER, COPY and RUN of the target is
then done in it as an engine would: COPY sees what .dockerignore lets through, RUN is a chroot with the instruction's
user, folder and variables, and nothing of the caller's. An instruction that is not known here ends it. It needs root,
debootstrap and unshare, and room for the image (5 GB for the CPU, 20 GB for the GPU).

    python tools/dockerfile_in_root.py --target cpu --root /var/tmp/root --try "" --try "--version"

What the machine needs to reach its package mirrors is named, not known here: `--bind` shows a file or folder of the
host in the root, `--env` passes a variable on. Both end with the command, as they are no part of the image.
"""

import argparse
import json
import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from docker.utils.build import exclude_paths
from dockerfile_parse import DockerfileParser
from dockerfile_parse.util import WordSplitter, extract_key_values

REPOSITORY = Path(__file__).resolve().parent.parent
BASE_PACKAGES = "python3,python3-venv,python3-dev,ca-certificates"
BASE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class BuildError(Exception):
    """What ends the build, in one sentence."""


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile.

    Attributes:
        name: In capitals.
        value: What follows it, in one line.
        line: Where it begins, from 1.
    """

    name: str
    value: str
    line: int

    def __str__(self) -> str:
        words = f"{self.name} {' '.join(self.value.split())}"
        return words if len(words) <= 70 else f"{words[:67]}..."


@dataclass
class State:
    """What an instruction changes for those after it, apart from files.

    Attributes:
        env: Variables of the image.
        user: As in USER.
        folder: The working directory.
        entrypoint: Of the image.
        command: Of the image.
    """

    env: dict[str, str] = field(default_factory=lambda: {"PATH": BASE_PATH})
    user: str = "0:0"
    folder: PurePosixPath = field(default_factory=lambda: PurePosixPath("/"))
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def words(self, value: str) -> list[str]:
        """The words of a value, with variables filled in."""
        return list(WordSplitter(value, args={}, envs=self.env).split())


def stage(dockerfile: Path, target: str) -> tuple[str, list[Instruction]]:
    """The base image of a target, and all instructions from there to its end.

    Raises:
        BuildError: There is no such target.
    """
    stages: dict[str, tuple[str, list[Instruction]]] = {}
    current: list[Instruction] = []
    arguments: dict[str, str] = {}  # those before the first FROM, for the names of base images
    for entry in DockerfileParser(str(dockerfile)).structure:
        name = entry["instruction"]
        if name == "FROM":
            base, *named = WordSplitter(entry["value"], args=arguments, envs={}).split()
            current = []
            stages[named[1] if named else base] = (base, current)
        elif name == "ARG" and not stages:
            arguments |= extract_key_values(env_replace=True, args={}, envs={}, instruction_value=entry["value"])
        elif stages and name != "COMMENT":
            current.append(Instruction(name, entry["value"], entry["startline"] + 1))
    if target not in stages:
        raise BuildError(f"There is no target {target!r} in {dockerfile}, there is: {', '.join(stages)}.")
    base, instructions = stages[target]
    while base in stages:
        base, earlier = stages[base]
        instructions = earlier + instructions
    return base, instructions


def context_files(folder: Path) -> list[str]:
    """Files of the build context, relative to it, without what .dockerignore keeps out."""
    lines = (folder / ".dockerignore").read_text().splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    found = exclude_paths(str(folder), patterns) - {
        "Dockerfile",
        ".dockerignore",
    }  # these go to the engine, not to COPY
    return sorted(name for name in found if not (folder / name).is_dir())


class Root:
    """A folder that holds a system, and what is done in it.

    Args:
        folder: The root; must not exist yet, or be one of ours.
        binds: Files and folders of the host that RUN sees.
        passed: Variables of the host that RUN sees.
        log: Where the output goes.
    """

    def __init__(self, folder: Path, binds: Sequence[Path], passed: Sequence[str], log: Path) -> None:
        self.folder = folder
        self._binds = binds
        self._passed = {name: os.environ[name] for name in passed if name in os.environ}
        self._log = log

    def bootstrap(self, suite: str, mirror: str | None) -> None:
        """A minimal Debian with the Python that the base image has."""
        command = ["debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", suite, str(self.folder)]
        self._call([*command, mirror] if mirror else command)

    def run(self, state: State, command: Sequence[str]) -> None:
        """A command in the root, with the user, folder and variables of an image."""
        user = self._account(state.user)
        env = {"HOME": user.pw_dir, **state.env, **self._passed}
        variables = [f"{name}={value}" for name, value in env.items()]
        inside = ["chroot", f"--userspec={user.pw_uid}:{user.pw_gid}", str(self.folder), "env", "-i"]
        go = [*inside, f"--chdir={state.folder}", *variables, *command]
        script = "\n".join(["set -e", *self._mounts(), f"exec {shlex.join(go)}"])
        self._call(["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script])

    def copy(self, state: State, value: str, context: Path) -> None:
        """COPY from a build context.

        Raises:
            BuildError: An option is not known, or a source is not in the context.
        """
        words = state.words(value)
        options = [word for word in words if word.startswith("--")]
        *sources, target = [word for word in words if not word.startswith("--")]
        owner = self._account(self._chown(options) if options else "0:0")
        visible = context_files(context)
        place = self.inside(state.folder / target)
        for source in sources:
            for name, within in self._found(source, visible):
                renamed = name == source and not target.endswith("/") and not place.is_dir()
                self._place(context / name, place if renamed else place / within, owner)

    def make_folder(self, path: PurePosixPath) -> None:
        """A folder of WORKDIR, which is root's."""
        self.inside(path).mkdir(parents=True, exist_ok=True)

    def inside(self, path: PurePosixPath) -> Path:
        """A path of the image on the host."""
        return self.folder / path.relative_to("/")

    def _mounts(self) -> Iterator[str]:
        """Mounts of a namespace that ends with the command."""
        yield "mount --make-rprivate /"
        yield shlex.join(["mount", "-t", "proc", "proc", str(self.folder / "proc")])
        yield shlex.join(["mount", "-t", "sysfs", "-o", "ro", "sysfs", str(self.folder / "sys")])
        yield shlex.join(["mount", "--rbind", "/dev", str(self.folder / "dev")])
        for path in [Path("/etc/resolv.conf"), *self._binds]:
            place = self.folder / path.relative_to("/")
            if path.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
            yield shlex.join(["mount", "--rbind", str(path.resolve()), str(place)])

    @staticmethod
    def _chown(options: list[str]) -> str:
        match = re.fullmatch(r"--chown=(\S+)", " ".join(options))
        if match is None:
            raise BuildError(f"COPY {' '.join(options)} is not known here.")
        return match[1]

    @staticmethod
    def _found(source: str, visible: Sequence[str]) -> Iterator[tuple[str, PurePosixPath]]:
        """Files of the context that a source names, each with its path below the target."""
        wanted = PurePosixPath(source)
        found = False
        for name in visible:
            path = PurePosixPath(name)
            if path == wanted:
                yield name, PurePosixPath(path.name)
            elif wanted == PurePosixPath(".") or wanted in path.parents:
                yield name, path.relative_to(wanted)
            else:
                continue
            found = True
        if not found:
            raise BuildError(f"COPY {source}: it is not there, or .dockerignore keeps it out.")

    @staticmethod
    def _place(source: Path, target: Path, owner: pwd.struct_passwd) -> None:
        missing = [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
        for path in [*missing, target]:
            os.chown(path, owner.pw_uid, owner.pw_gid)

    def _account(self, user: str) -> pwd.struct_passwd:
        """The account of the root that USER or --chown names, by name or number."""
        name = user.partition(":")[0]
        for line in (self.folder / "etc/passwd").read_text().splitlines():
            parts = line.split(":")
            if name in (parts[0], parts[2]):
                return pwd.struct_passwd((*parts[:2], int(parts[2]), int(parts[3]), *parts[4:]))
        raise BuildError(f"There is no user {name!r} in the image.")

    def _call(self, command: Sequence[str]) -> None:
        with self._log.open("a") as log:
            log.write(f"\n+ {shlex.join(command)}\n")
            log.flush()
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        if code != 0:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-25:])
            raise BuildError(f"It ended with code {code}; the last lines of {self._log}:\n{tail}")


def carry_out(instruction: Instruction, state: State, root: Root, context: Path) -> None:
    """One instruction.

    Raises:
        BuildError: It failed, or is not known here.
    """
    value = instruction.value
    match instruction.name:
        case "ENV":
            state.env.update(extract_key_values(env_replace=True, args={}, envs=state.env, instruction_value=value))
        case "WORKDIR":
            state.folder /= state.words(value)[0]
            root.make_folder(state.folder)
        case "USER":
            state.user = state.words(value)[0]
        case "COPY":
            root.copy(state, value, context)
        case "RUN":
            root.run(state, ["/bin/sh", "-c", value])
        case "ENTRYPOINT":
            state.entrypoint = json.loads(value)
        case "CMD":
            state.command = json.loads(value)
        case name:
            raise BuildError(f"Line {instruction.line}: {name} is not known here.")


def build(options: argparse.Namespace) -> None:
    """All of it, with a line for each thing done.

    Raises:
        BuildError: Something failed.
    """
    base, instructions = stage(options.dockerfile, options.target)
    root = Root(options.root, options.bind, options.env, options.log)
    state = State()
    rows: list[tuple[str, float]] = []

    def timed(title: str, start: float) -> None:
        rows.append((title, time.monotonic() - start))
        print(f"  ok {rows[-1][1]:7.1f} s  {title}", flush=True)

    start = time.monotonic()
    root.bootstrap(options.suite, options.mirror)
    timed(f"FROM {base}: Debian {options.suite} from debootstrap in its place", start)
    for instruction in instructions:
        start = time.monotonic()
        carry_out(instruction, state, root, options.context)
        timed(str(instruction), start)
    for arguments in options.try_out:
        start = time.monotonic()
        command = [*state.entrypoint, *(shlex.split(arguments) or state.command)]
        root.run(state, command)
        timed(f"$ {shlex.join(command)}", start)
    print(f"\nTarget {options.target}: {len(instructions)} instructions and {len(options.try_out)} commands, all done.")
    print(f"Size of the root: {_size(options.root) / 1e9:.1f} GB.")


def _size(folder: Path) -> int:
    done = subprocess.run(["du", "-sxB1", str(folder)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True, help="target of the Dockerfile")
    parser.add_argument("--root", type=Path, required=True, help="folder to make the root in; must not exist")
    parser.add_argument("--log", type=Path, help="file for the output of all commands (default: <root>.log)")
    parser.add_argument("--suite", default="bookworm", help="release of Debian, that of the base image")
    parser.add_argument("--mirror", help="where debootstrap finds it (default: its own)")
    parser.add_argument("--bind", type=Path, action="append", default=[], help="file or folder of the host to show")
    parser.add_argument("--env", action="append", default=[], help="variable of the host to pass on")
    parser.add_argument("--try", dest="try_out", action="append", default=[], metavar="ARGUMENTS")
    parser.add_argument("--dockerfile", type=Path, default=REPOSITORY / "Dockerfile")
    parser.add_argument("--context", type=Path, default=REPOSITORY)
    options = parser.parse_args(arguments)
    options.root = options.root.absolute()
    options.log = options.log or options.root.with_name(f"{options.root.name}.log")
    if options.root.exists():
        parser.error(f"--root {options.root} exists: name a folder that does not")
    if os.geteuid() != 0:
        parser.error("this needs root: it makes a system and enters it")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = read_options(arguments)
    options.log.unlink(missing_ok=True)
    try:
        build(options)
    except BuildError as error:
        print(f"dockerfile_in_root: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
