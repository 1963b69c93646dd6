"""What a verifier that was taken over can do: spoil the verdict of its own item."""

import os
import random
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from asymgrpo_app.errors import UserError
from asymgrpo_app.rewards import Status, Verdict
from asymgrpo_app.rewards.pool import sandbox
from asymgrpo_app.rewards.pool.limits import allowed_variables
from asymgrpo_app.rewards.pool.messages import decoded, encoded
from asymgrpo_app.rewards.pool.pool import VerifierPool, VerifierPoolConfig
from tests.support.hostile_verifiers import Attacking, KeepsWhatItLoads

ABI = sandbox._landlock_version()
in_sandbox = pytest.mark.skipif(sandbox.missing() is not None, reason="this machine offers no sandbox")
scoped = pytest.mark.skipif(ABI < 6, reason="signals are scoped from version 6 of Landlock on")

NOT_A_REPLY = "its worker sent something other than its reply 3 times"
DIED = "its worker died 3 times"


def _config(**settings: Any) -> VerifierPoolConfig:
    return VerifierPoolConfig(workers=2, timeout_s=5.0, memory_gib=1.0, **settings)


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(_config()) as pool:
        yield pool


@pytest.fixture(scope="module")
def open_pool() -> Iterator[VerifierPool]:
    with VerifierPool(_config(sandbox=False)) as pool:
        yield pool


def _attack(pool: VerifierPool, attack: str, more: int = 40, **row: Any) -> Verdict:
    """The verdict of an attack; those of the items around it, and of a later call, must be right."""
    answers = [random.Random(n).choice("ab") for n in range(more)]
    texts = [*answers[: more // 4], attack, *answers[more // 4 :]]
    row = {"answer": "a", "trainer": os.getpid()} | row
    first = pool.score([Attacking()] * len(texts), texts, [row] * len(texts))
    verdict = first.pop(more // 4)
    for verdicts in (first, pool.score([Attacking()] * more, answers, [row] * more)):
        assert verdicts == [Verdict(correct=answer == "a") for answer in answers]
    return verdict


def _gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


# ---- replies ----


@pytest.mark.parametrize(
    ("attack", "detail"),
    [
        ("surplus", NOT_A_REPLY),
        ("wrong number", NOT_A_REPLY),
        ("no number", NOT_A_REPLY),
        ("huge reply", f"{NOT_A_REPLY}|{DIED}"),
        ("unreadable reply", NOT_A_REPLY),
        ("deep reply", NOT_A_REPLY),
        ("reply of another kind", NOT_A_REPLY),
        ("any descriptor", NOT_A_REPLY),
        ("close everything", DIED),
        ("another program", DIED),
        ("a number found in memory", f"|{NOT_A_REPLY}"),  # its own item is all that a forged reply reaches
        ("late surplus", "None"),
        ("another folder", "None"),
    ],
)
def test_no_message_changes_the_verdict_of_another_item(pool, attack, detail):
    assert re.fullmatch(detail, _attack(pool, attack).detail)


def test_half_a_reply_does_not_keep_the_pool_waiting():
    with VerifierPool(VerifierPoolConfig(workers=2, timeout_s=0.2)) as pool:
        detail = "took longer than 1 s, 5 times its 0.2 CPU seconds"
        late = Verdict(correct=False, status=Status.TIMEOUT, detail=detail)
        assert _attack(pool, "half a reply") == late


GOOD = {"correct": True, "status": "ok", "detail": ""}
FAILED = {"correct": False, "status": "error", "detail": "x"}


@pytest.mark.parametrize(
    ("kind", "reply", "believed"),
    [
        ("verify", GOOD, True),
        ("verify", FAILED, True),
        ("verify", {**GOOD, "correct": 1}, False),
        ("verify", {**GOOD, "status": "no_answer"}, False),
        ("verify", {**GOOD, "status": "fine"}, False),
        ("verify", {**GOOD, "detail": None}, False),
        ("verify", {"correct": True}, False),
        ("verify", {}, False),
        ("verify", {"reason": None}, False),
        ("verify", [], False),
        ("load", {}, True),
        ("load", FAILED, True),
        ("load", GOOD, False),
        ("check", {"reason": None}, True),
        ("check", {"reason": "no"}, True),
        ("check", {"reason": 5}, False),
        ("check", GOOD, False),
        ("classes", {"classes": [0, None, 1]}, True),
        ("classes", {"classes": [0, 1]}, False),
        ("classes", {"classes": [0, 1, 3]}, False),
        ("classes", {"classes": [0, 1, True]}, False),
        ("classes", {"classes": 3}, False),
    ],
)
def test_only_a_whole_reply_of_the_right_kind_is_believed(kind, reply, believed):
    message = encoded("5e", reply, False)
    assert decoded(message, "5e", kind, 3) == ((reply, False) if believed else None)
    assert decoded(message, "5f", kind, 3) is None
    assert decoded(message + b"\n", "5e", kind, 3) is None


def test_what_a_reply_says_is_printable():
    reply = {**FAILED, "detail": "a\n\x1b[2J" + "b" * 2_000}
    (found, _) = decoded(encoded("1", reply, False), "1", "verify", 1)
    assert found["detail"] == r"a \x1b[2J" + "b" * 591 + " ..."


# ---- processes ----


@pytest.mark.parametrize("kind", ["pool", "open_pool"])
@pytest.mark.parametrize("attack", ["session", "double fork", "many"])
def test_what_an_item_started_ends_with_it(request, kind, attack):
    verdict = _attack(request.getfixturevalue(kind), attack, many=20)
    pids = [int(pid) for pid in verdict.detail.split()]
    assert len(pids) == (20 if attack == "many" else 1)
    assert [pid for pid in pids if not _gone(pid)] == []


def test_what_an_item_started_has_ended_when_its_verdict_comes(pool):
    (verdict,) = pool.score([Attacking()], ["double fork"], [{"answer": "a"}])
    assert _gone(int(verdict.detail))


@pytest.mark.long
def test_a_crowd_of_processes_ends():
    with VerifierPool(VerifierPoolConfig(workers=2, timeout_s=60.0)) as pool:
        (verdict,) = pool.score([Attacking()], ["many"], [{"answer": "a", "many": 30}])
        assert all(_gone(int(pid)) for pid in verdict.detail.split())


def test_an_item_that_kills_the_launcher_is_found(open_pool):
    texts = ["a", "kill the parent", *"abab", "kill the parent", "b"]
    verdicts = open_pool.score([Attacking()] * 8, texts, [{"answer": "a"}] * 8)
    detail = "the process that starts workers died 3 times over it, at last over it alone"
    guilty = Verdict(correct=False, status=Status.ERROR, detail=detail)
    assert verdicts == [guilty if "kill" in text else Verdict(correct=text == "a") for text in texts]


def test_a_lone_item_that_kills_the_launcher_fails(open_pool):
    (verdict,) = open_pool.score([Attacking()], ["kill the parent"], [{"answer": "a"}])
    assert verdict.detail == "the process that starts workers died 3 times over it, at last over it alone"


# ---- limits ----


def test_limits(pool):
    size, files = 16 * 2**20, 256
    assert _attack(pool, "limits").detail == f"({size}, {size}) ({files}, {files}) (0, 0) 1000"


@pytest.mark.parametrize(
    ("attack", "error"), [("huge file", "OSError: [Errno 27] File too large"), ("many files", "OSError: [Errno 24]")]
)
@pytest.mark.parametrize("kind", ["pool", "open_pool"])
def test_files_have_limits(request, kind, attack, error):
    assert _attack(request.getfixturevalue(kind), attack).detail.startswith(error)


def test_only_variables_that_libraries_need_are_handed_on():
    kept = {"PATH": "1", "LC_ALL": "2", "PYTHONPATH": "3", "OMP_NUM_THREADS": "4", "LD_LIBRARY_PATH": "5"}
    secrets = dict.fromkeys(["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "SSH_AUTH_SOCK", "MY_PATH"], "s")
    assert allowed_variables(kept | secrets) == kept


@pytest.mark.parametrize(("setting", "seen"), [(None, False), (False, True)])
def test_secrets_of_the_environment(monkeypatch, setting, seen):
    monkeypatch.setenv("ZZ_TOKEN", "hushhush")
    with VerifierPool(_config(sandbox=setting)) as pool:
        assert ("hushhush" in _attack(pool, "environment", more=4).detail) is seen


# ---- sandbox ----


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, in the search path of modules; holds a secret."""
    (tmp_path / "secret").write_text("hush")
    (tmp_path / "beside_a_secret.py").write_text("VALUE = 5")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def abstract():
    name = f"\0asymgrpo-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        yield name


HINT = (
    "; verifiers run in a sandbox without network, and without files but those of modules and a temporary folder "
    "(`sandbox: false` of the verifiers' pool turns it off)"
)


@in_sandbox
@pytest.mark.parametrize(
    "attack",
    [
        *("write here", "write to the run", "write at home", "write to the temporary folder of all"),
        *("write beside modules", "remove", "truncate", "rename", "link", "read a secret", "read through a link"),
        *("memory of the trainer", "environment of the trainer", "command of the trainer", "ptrace"),
        "limits of the trainer",
        pytest.param("signal to the trainer", marks=scoped),
        pytest.param("signal to the parent", marks=scoped),
        *("connect", "connect by IPv6", "bind", "datagram", "abstract socket", "socket in a folder"),
    ],
)
def test_the_sandbox_denies(pool, folder, port, abstract, attack):
    before = {path.name for path in folder.iterdir()}
    verdict = _attack(pool, attack, more=4, folder=str(folder), port=port, abstract=abstract)
    assert verdict.status is Status.ERROR
    assert re.match(r"(PermissionError|OSError): \[Errno (1|13|18)\]", verdict.detail)
    assert verdict.detail.endswith(HINT)
    assert {path.name for path in folder.iterdir()} == before
    assert (folder / "secret").read_text() == "hush"
    assert not (Path.home() / ".asymgrpo-written").exists()
    assert not Path("/tmp/asymgrpo-written").exists()


@in_sandbox
def test_a_name_of_a_host_is_not_found_because_of_the_sandbox(pool):
    verdict = _attack(pool, "look up a name", more=4)
    assert verdict.detail.startswith("gaierror: ")
    assert verdict.detail.endswith(HINT)


@in_sandbox
def test_children_are_in_the_sandbox_as_well(pool, port):
    assert _attack(pool, "connect from a child", more=4, port=port).detail == "1"


@pytest.mark.parametrize(
    ("attack", "outcome"),
    [("a tidy temporary file", "1"), ("a tidy program", "0"), ("look for files", "[]"), ("own limits again", "None")],
)
def test_what_a_verifier_may_do(pool, attack, outcome):
    verdict = _attack(pool, attack, more=4)
    assert (verdict.status, verdict.detail) == (Status.OK, outcome)


@in_sandbox
def test_modules_are_read_and_what_is_beside_them_is_not(folder):
    with VerifierPool(_config()) as pool:
        row = {"folder": str(folder)}
        assert _attack(pool, "import what is beside a secret", more=4, **row).detail == "5"
        secret = _attack(pool, "read what is beside a module", more=4, **row)
    assert secret.detail.startswith(f"PermissionError: [Errno 13] Permission denied: '{folder}/secret'")


@in_sandbox
def test_no_item_finds_the_files_of_another():
    with VerifierPool(VerifierPoolConfig(workers=1)) as pool:
        hidden = pool.score([Attacking()] * 2, ["leave a file and set the time back", "look for files"], [{}] * 2)
        assert [verdict.detail for verdict in hidden] == ["None", "[]"]
        left, found = pool.score([Attacking()] * 2, ["leave a file", "look for files"], [{"answer": "a"}] * 2)
        private = Path(left.detail)
        assert found.detail == "[]"
        assert not private.exists()
        assert private.parent.exists()
    assert private.parent.parent == Path(tempfile.gettempdir())
    assert not private.parent.exists()


def test_a_worker_stays_while_nothing_is_left():
    with VerifierPool(VerifierPoolConfig(workers=1)) as pool:
        for verifier, item in ((Attacking(), "a tidy folder"), (KeepsWhatItLoads(), "process number")):
            assert len({verdict.detail for verdict in pool.score([verifier] * 3, [item] * 3, [{}] * 3)}) == 1


@in_sandbox
def test_temporary_files_that_are_cleared_away_cost_a_worker_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with VerifierPool(VerifierPoolConfig(workers=1)) as pool:
        (left,) = pool.score([Attacking()], ["leave a file"], [{}])
        shutil.rmtree(Path(left.detail).parent)
        found = pool.score([Attacking()] * 2, ["look for files"] * 2, [{}] * 2)
    assert [verdict.detail for verdict in found] == ["[]"] * 2
    with VerifierPool(VerifierPoolConfig(workers=1)) as pool:
        pool.score([Attacking()], ["a"], [{"answer": "a"}])
        (folder,) = tmp_path.iterdir()
        shutil.rmtree(folder)
        assert pool.score([Attacking()] * 2, ["a"] * 2, [{"answer": "a"}] * 2) == [Verdict(correct=True)] * 2


def test_a_variable_of_our_own_does_not_reach_programs_of_verifiers():
    assert allowed_variables({"PYTHONSAFEPATH": "asymgrpo"}) == {}
    assert allowed_variables({"PYTHONSAFEPATH": "1"}) == {"PYTHONSAFEPATH": "1"}


def test_without_the_sandbox_a_verifier_may_do_what_the_training_process_may(open_pool, folder, port):
    row = {"folder": str(folder), "port": port}
    assert _attack(open_pool, "read a secret", more=4, **row).detail == "hush"
    assert _attack(open_pool, "connect", more=4, **row).detail == "None"
    assert _attack(open_pool, "write to the run", more=4, **row).detail == "None"
    assert (folder / "written").exists()


def test_a_sandbox_that_is_asked_for_must_be_offered(monkeypatch):
    monkeypatch.setattr(sandbox, "missing", lambda: "its kernel has no Landlock")
    with pytest.raises(UserError) as raised:
        VerifierPool(VerifierPoolConfig(sandbox=True))
    text = "sandbox: true: this machine offers no sandbox for verifiers: its kernel has no Landlock."
    assert str(raised.value) == text


@pytest.mark.parametrize(
    ("setting", "reason", "text"),
    [
        (None, None, "in a sandbox: without network, and without files but those of modules and a temporary folder."),
        (None, "no Landlock", "under limits, but without a sandbox: no Landlock."),
        (False, None, "without a sandbox, as sandbox: false says."),
    ],
)
def test_what_is_on_is_said_once(monkeypatch, setting, reason, text):
    monkeypatch.setattr(sandbox, "missing", lambda: reason)
    said: list[str] = []
    with VerifierPool(_config(sandbox=setting), said.append) as pool:
        assert said == []
        for _ in range(2):
            pool.score([Attacking()], ["a"], [{"answer": "a"}])
    assert said == [f"Verifiers run {text}"]


def test_without_the_offer_there_are_limits_alone(monkeypatch, folder):
    monkeypatch.setattr(sandbox, "missing", lambda: "its kernel has no Landlock")
    monkeypatch.setenv("ZZ_TOKEN", "hushhush")
    with VerifierPool(_config()) as pool:
        assert _attack(pool, "read a secret", more=4, folder=str(folder)).detail == "hush"
        assert "hushhush" not in _attack(pool, "environment", more=4).detail
