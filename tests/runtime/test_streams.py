"""Output that nobody reads, has no place, or goes nowhere from the start."""

import os
import subprocess
import sys

import pytest

# Far more than a pipe holds, by every way in which the commands write.
_WRITES = """
import os, sys, warnings
from asymgrpo_app.runtime.console import complain, say
from asymgrpo_app.runtime.streams import keep_streams, write_failure
keep_streams()
from tqdm import tqdm
for number in range(3000):
    say("x" * 100)
    print("y" * 100, flush=True)
    sys.stdout.write("z" * 100)
bar = tqdm(total=10, file=sys.stdout)
bar.update(5)
bar.close()
warnings.warn("a warning")
complain("a complaint")
opened = os.open(os.devnull, os.O_RDONLY)
failure = write_failure()
os.write(int(sys.argv[1]), f"{opened > 2} {failure and failure.errno} {sys.stdout.isatty()}".encode())
"""


def run(redirection: str) -> tuple[int, str]:
    """The program behind a shell's redirection; returns its exit code and what it says at its end."""
    read, write = os.pipe()
    line = f'"$0" -c "$1" {write} {redirection}'
    done = subprocess.run(
        ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}", sys.executable, _WRITES],
        pass_fds=[write],
        stderr=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    os.close(write)
    with os.fdopen(read) as told:
        return done.returncode, told.read()


@pytest.mark.parametrize(
    ("redirection", "failure"),
    [
        ("| true", "None"),
        ("| head -1 >/dev/null", "None"),
        ("2>&1 | true", "None"),
        (">&-", "None"),
        ("2>&-", "None"),
        ("<&- >&- 2>&-", "None"),
        (">/dev/full", "28"),
        (">/dev/null", "None"),
    ],
)
def test_a_program_goes_on_without_its_output(redirection, failure):
    assert run(redirection) == (0, f"True {failure} False")


def command(line: str) -> tuple[int, str, str]:
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; asymgrpo() {{ "{sys.executable}" -m asymgrpo_app "$@"; }}; {line}'],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        ("asymgrpo --help | true", 0, ""),
        ("asymgrpo --help >&-", 0, ""),
        ("asymgrpo fti 2>&-", 2, ""),
        ("asymgrpo compare --help | head -1 >/dev/null", 0, ""),
        ("asymgrpo --version >/dev/full", 1, "asymgrpo: the output is not whole: No space left on device.\n"),
        ("asymgrpo score --help >/dev/full", 1, "asymgrpo: the output is not whole: No space left on device.\n"),
        ("PYTHONIOENCODING=ascii asymgrpo compare nö.json x.json", 2, None),
    ],
)
def test_a_command_without_its_output_ends_without_a_traceback(line, code, error):
    done = command(line)
    assert done[0] == code
    assert done[1] == ""
    assert "Traceback" not in done[2]
    if error is None:
        assert done[2] == "asymgrpo: error: n\\xf6.json cannot be read: No such file or directory.\n"
    else:
        assert done[2] == error
