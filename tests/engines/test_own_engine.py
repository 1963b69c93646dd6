"""A run that starts vLLM by itself, as all runs of users do."""

from asymgrpo_app.cli import main
from asymgrpo_app.rollout.vllm_engine import VLLMEngine
from tests.support.events import values


def test_a_run_starts_its_engine_with_room_for_the_longest_sequence_and_ends_it(quickstart, tmp_path, monkeypatch):
    started, closed = [], []
    start, close = VLLMEngine.__init__, VLLMEngine.close

    def noted_start(self, *arguments):
        started.append(arguments)
        start(self, *arguments)

    def noted_close(self):
        closed.append(self)
        close(self)

    monkeypatch.setattr(VLLMEngine, "__init__", noted_start)
    monkeypatch.setattr(VLLMEngine, "close", noted_close)
    small = ["--steps=2", "--data.prompts_per_step=8", "--data.validation.countdown.limit=8"]
    longer = ["--data.validation.countdown.max_completion_tokens=14"]
    assert main([*quickstart, *small, *longer, f"--run_dir={tmp_path / 'run'}"]) == 0
    ((_, config, dtype, max_model_len),) = started
    assert (dtype, max_model_len) == ("float32", 16 + 14)
    assert config.max_num_seqs == 512
    assert len(closed) == 1
    close(closed[0])  # a second time does no harm
    found = values(tmp_path / "run")
    assert len(found["val/countdown/avg@8"]) == 2
    assert max(found["rollout_corr/logprob_abs_diff_max"]) < 1e-4
