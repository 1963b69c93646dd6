"""The summary names what there is."""

import json
import re
from pathlib import Path

import pytest

from tests.support.scripted_engine import fit

TENSORBOARD = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "OTHER/events", "name": "mine"}}
CSV = {"class_path": "CSVLogger", "init_args": {"save_dir": "OTHER", "name": "table", "version": "one"}}
# The trainer's loggers, and the lines about them.
LOGGERS = {
    "the run's own": (True, ["  TensorBoard   tensorboard --logdir RUN/tensorboard"]),
    "none": (False, []),
    "a table": ([CSV], ["  CSV           OTHER/table/one"]),
    "TensorBoard elsewhere": ([TENSORBOARD], ["  TensorBoard   tensorboard --logdir OTHER/events/mine/version_0"]),
    "two": (
        [CSV, TENSORBOARD],
        ["  CSV           OTHER/table/one", "  TensorBoard   tensorboard --logdir OTHER/events/mine/version_0"],
    ),
}


@pytest.mark.parametrize("name", LOGGERS)
def test_each_logger_is_named_with_its_folder(name, tmp_path, monkeypatch, capsys):
    loggers, expected = LOGGERS[name]
    run, other = tmp_path / "run", tmp_path / "other"
    written = json.dumps(loggers).replace("OTHER", str(other))
    fit(monkeypatch, tmp_path, "--steps=1", f"--trainer.logger={written}")
    printed = capsys.readouterr().out
    lines = printed[printed.index("Run finished") :].splitlines()
    wanted = [line.replace("RUN", str(run)).replace("OTHER", str(other)) for line in expected]
    assert [line for line in lines if line.startswith(("  TensorBoard", "  CSV"))] == wanted
    paths = [Path(found) for line in lines for found in re.findall(rf"{tmp_path}\S*", line)]
    assert len(paths) == 4 + len(wanted)  # the run, checkpoint, results and model
    assert [path for path in paths if not path.exists()] == []
    assert "vLLM" not in printed[printed.index("Run finished") :]


def test_what_there_is_not_is_not_named(tmp_path, monkeypatch, capsys):
    fit(monkeypatch, tmp_path, "--steps=1", "--trainer.logger=false", "--data.validation=null")
    printed = capsys.readouterr().out
    assert "Results" not in printed
    assert "TensorBoard" not in printed
