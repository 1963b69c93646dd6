"""A config with all that carries state from step to step: a source that ends, refills, two updates, schedules."""

import json
from pathlib import Path

STEPS = 6
ROWS = 20  # of 8 prompts a step: the first pass ends in the third step, the second in the fifth
GROUP = 4


def everything(folder: Path) -> Path:
    """Write the config and its problems to a folder; returns the config's path."""

    def source(name: str, rows: int) -> dict:
        path = folder / f"{name}.jsonl"
        path.write_text("\n".join(json.dumps({"prompt": f"{number}>", "answer": "1"}) for number in range(rows)))
        return {"class_path": "asymgrpo_app.prompts.JsonLines", "init_args": {"path": str(path)}}

    settings = {
        "steps": STEPS,
        "model": {
            "updates_per_step": 2,
            "loss": {"adaptive_entropy": {"coef": 0.001, "target": 5.0, "delta": 0.001, "max_coef": 1.0}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "weight_decay": 0.1}},
            "lr_scheduler": {
                "class_path": "torch.optim.lr_scheduler.StepLR",
                "init_args": {"step_size": 1, "gamma": 0.9},
            },
        },
        "data": {
            "train": source("problems", ROWS),
            "prompts_per_step": 8,
            "validation": {"held_out": {"source": source("held_out", 9), "samples": 5, "pass_at": [1, 4]}},
        },
        "rollout": {
            "group_size": GROUP,
            "dynamic_sampling": {"max_rounds": 1},
            "canary": {"digest": False, "completions": 0},  # no policy gives these log-probabilities
        },
        "checkpoint": {"every_n_steps": 100},
        "tensorboard": {"every_n_steps": 2, "change_completions": 8},
        "trainer": {"val_check_interval": 2, "accelerator": "cpu"},
    }
    path = folder / "everything.yaml"
    path.write_text(json.dumps(settings))
    return path
