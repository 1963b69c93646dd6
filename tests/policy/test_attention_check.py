"""`model.attention: flash_attention_2` is refused where it cannot run, before a model is loaded."""

import pytest

from asymgrpo_app.cli import main
from asymgrpo_app.errors import UserError
from asymgrpo_app.policy import loading as policy
from asymgrpo_app.policy.loading import check_attention


@pytest.mark.parametrize(
    ("attention", "device", "precision", "installed", "refusal"),
    [
        ("flash_attention_2", "cuda", "bf16-mixed", True, None),
        ("flash_attention_2", "cuda", "bf16-mixed", False, "needs flash-attn, which is not installed: leave"),
        ("flash_attention_2", "cuda", "32-true", True, "takes a GPU and .* bf16-mixed, got cuda and 32-true: leave"),
        ("flash_attention_2", "cpu", "bf16-mixed", True, "takes a GPU and .*, got cpu and bf16-mixed: leave"),
        ("sdpa", "cpu", "32-true", False, None),
        ("eager", "cpu", "32-true", False, None),
    ],
)
def test_where_flash_attention_runs(attention, device, precision, installed, refusal, monkeypatch):
    monkeypatch.setattr(policy, "find_spec", lambda name: object() if installed else None)
    if refusal is None:
        check_attention(attention, device=device, precision=precision)
        return
    with pytest.raises(UserError, match=rf"^model\.attention flash_attention_2 {refusal} model\.attention at sdpa"):
        check_attention(attention, device=device, precision=precision)


def test_a_dry_run_refuses_it(quickstart, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = main(["check", *quickstart[1:], "--trainer.accelerator=cpu", "--model.attention=flash_attention_2"])
    assert code == 2
    assert "model.attention flash_attention_2 takes a GPU" in capsys.readouterr().err
