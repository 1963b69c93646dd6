"""Which checkpoint a resume takes, which ones stay, and what a start tidies up."""

import shutil

import pytest

from asymgrpo_app.callbacks.checkpoint import RunCheckpoint
from asymgrpo_app.checkpoints import folder
from asymgrpo_app.checkpoints.files import Label, verify
from asymgrpo_app.checkpoints.folder import (
    BestCheckpoints,
    check_whole,
    checkpoint_folder,
    list_checkpoints,
    newest_whole,
    obsolete,
    set_aside,
    sweep,
)
from asymgrpo_app.errors import UserError
from asymgrpo_app.runtime.whole_files import part_of
from tests.support.checkpoint_files import DAMAGES, die, in_a_child, save


def names(run_dir) -> list[str]:
    return sorted(path.name for path in checkpoint_folder(run_dir).iterdir())


# ---- what `last` means ----


def test_last_is_the_highest_step_however_the_names_sort(tmp_path):
    for step in (9, 100_000_000, 10, 99_999_999):
        save(tmp_path, step)
    assert list(list_checkpoints(tmp_path)) == [9, 10, 99_999_999, 100_000_000]
    assert newest_whole(tmp_path) == (list_checkpoints(tmp_path)[100_000_000], [])


def test_a_run_without_checkpoints_has_no_last(tmp_path):
    assert newest_whole(tmp_path) == (None, [])
    checkpoint_folder(tmp_path).mkdir()
    assert newest_whole(tmp_path) == (None, [])


@pytest.mark.parametrize("name", DAMAGES)
def test_last_passes_over_a_damaged_one_and_says_why(tmp_path, name):
    older, newer = save(tmp_path, 2), save(tmp_path, 4)
    DAMAGES[name](newer)
    found, skipped = newest_whole(tmp_path)
    assert found == older
    (line,) = skipped
    assert line.startswith("step-00000004.ckpt: it")


def test_a_checkpoint_under_another_ones_name_is_passed_over(tmp_path):
    older = save(tmp_path, 2)
    shutil.copy(older, older.with_name("step-00000009.ckpt"))
    assert newest_whole(tmp_path) == (older, ["step-00000009.ckpt: it is the checkpoint of step 2"])


@pytest.mark.parametrize("number", [1, 2, 5])
def test_nothing_whole_is_no_reason_to_start_again_in_silence(tmp_path, number):
    for step in range(number):
        DAMAGES["empty"](save(tmp_path, step))
    with pytest.raises(UserError, match=r"no checkpoint in .*checkpoints is whole \(step-0.*it is empty"):
        newest_whole(tmp_path)


def test_a_named_one_is_checked(tmp_path):
    path = save(tmp_path, 4, accuracy=0.5)
    assert check_whole(str(path)) == Label(4, {"val/accuracy": 0.5})
    with pytest.raises(UserError, match="there is no such checkpoint"):
        check_whole(tmp_path / "nothing.ckpt")
    with pytest.raises(UserError, match=r"s3://bucket/x\.ckpt is an address"):
        check_whole("s3://bucket/x.ckpt")
    with pytest.raises(UserError, match="damaged: it is a folder"):
        check_whole(tmp_path)


# ---- what stays ----


def kept(found: dict[int, float | None], keep: int | None, best: BestCheckpoints | None = None) -> list[int]:
    """The steps that stay, of checkpoints by step with the value of `val/a`."""
    own = {f"{step}": Label(step, {} if value is None else {"val/a": value}) for step, value in found.items()}
    gone = {own[path].step for path in obsolete(own, keep, best)}
    return [step for step in found if step not in gone]


def test_the_newest_stay():
    every = dict.fromkeys((2, 4, 6, 8))
    assert kept(every, 1) == [8]
    assert kept(every, 3) == [4, 6, 8]
    assert kept(every, 9) == kept(every, None) == [2, 4, 6, 8]


def test_the_best_stay_beside_the_newest():
    values = {2: 0.3, 4: 0.9, 6: None, 8: 0.8, 10: float("nan"), 12: 0.1}
    assert kept(values, 1, BestCheckpoints("val/a")) == [4, 12]
    assert kept(values, 1, BestCheckpoints("val/a", keep=2)) == [4, 8, 12]
    assert kept(values, 2, BestCheckpoints("val/a", mode="min")) == [10, 12]
    assert kept(values, 1, BestCheckpoints("val/a", keep=2, mode="min")) == [2, 12]
    assert kept(values, 1, BestCheckpoints("val/another")) == [12]


def test_of_equally_good_ones_the_earlier_is_the_best():
    best = BestCheckpoints("val/a")
    assert kept({2: 0.5, 4: 0.5, 6: 0.5}, 1, best) == [2, 6]
    assert not best.takes(Label(4, {"val/a": 0.5}), [Label(2, {"val/a": 0.5})])
    assert best.takes(Label(4, {"val/a": 0.51}), [Label(2, {"val/a": 0.5}), Label(3)])
    assert not best.takes(Label(4, {"val/a": float("nan")}), [])
    assert not best.takes(Label(4), [])
    assert BestCheckpoints("val/a", keep=2).takes(Label(4, {"val/a": 0.1}), [Label(2, {"val/a": 0.5})])


def test_a_damaged_one_is_neither_counted_nor_removed(tmp_path):
    for step, value in {2: 0.1, 4: 0.9, 6: 0.2, 8: 0.3}.items():
        save(tmp_path, step, a=value)
    DAMAGES["a bit in the label"](list_checkpoints(tmp_path)[8])
    RunCheckpoint(keep=1, best=BestCheckpoints("val/a"))._prune(str(tmp_path))
    assert names(tmp_path) == ["step-00000004.ckpt", "step-00000006.ckpt", "step-00000008.ckpt"]


# ---- tidying up ----


def test_what_a_killed_save_left_is_removed_and_nothing_else(tmp_path):
    path = save(tmp_path, 4)
    part_of(path).write_bytes(b"PK")
    others = ["notes.part", ".step-4.ckpt.part", "step-00000005.ckpt.part"]
    for name in others:
        path.with_name(name).touch()
    sweep(tmp_path)
    assert names(tmp_path) == sorted([path.name, *others])
    sweep(tmp_path / "without checkpoints")


def test_newer_checkpoints_are_set_aside_and_never_overwritten(tmp_path):
    for branch in (1, 2):
        for step in (2, 4, 6):
            save(tmp_path, step, branch=branch)
        set_aside(tmp_path, after=2)
    assert names(tmp_path) == [
        "step-00000002.ckpt",
        *(f"step-0000000{step}.ckpt.abandoned{more}" for step in (4, 6) for more in ("", "-2")),
    ]
    aside = checkpoint_folder(tmp_path)
    assert verify(aside / "step-00000006.ckpt.abandoned").validation == {"val/branch": 1}
    assert verify(aside / "step-00000006.ckpt.abandoned-2").validation == {"val/branch": 2}
    assert newest_whole(tmp_path)[0] == list_checkpoints(tmp_path)[2]


def test_a_process_killed_while_it_sets_aside_leaves_the_older_part_of_the_branch(tmp_path, monkeypatch):
    for step in (2, 4, 6, 8):
        save(tmp_path, step)
    real = folder.Path.rename

    def rename(path, target):
        real(path, target)
        if "step-00000006" in path.name:
            die()

    def setting_aside() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(folder.Path, "rename", rename)
            set_aside(tmp_path, after=2)

    assert in_a_child(setting_aside) == 9
    assert list(list_checkpoints(tmp_path)) == [2, 4]
    set_aside(tmp_path, after=2)
    assert list(list_checkpoints(tmp_path)) == [2]


def test_a_process_killed_while_it_removes_old_ones_leaves_the_newest(tmp_path, monkeypatch):
    for step in (2, 4, 6, 8):
        save(tmp_path, step)
    real = folder.Path.unlink

    def unlink(path, missing_ok=False):
        real(path, missing_ok)
        die()

    def pruning() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(folder.Path, "unlink", unlink)
            RunCheckpoint(keep=1)._prune(str(tmp_path))

    assert in_a_child(pruning) == 9
    assert list(list_checkpoints(tmp_path)) == [4, 6, 8]
    RunCheckpoint(keep=1)._prune(str(tmp_path))
    assert names(tmp_path) == ["step-00000008.ckpt"]
