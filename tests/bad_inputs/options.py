"""Values of the wrong type, out of range, and in conflict, section by section."""

from tests.bad_inputs import trainer
from tests.bad_inputs.case import BadInput, option, setting

_SERVER = "{urls: ['http://a:1'], weights_folder: w, token_file: token.txt}"
_OF = {"nan": ".nan", "inf": ".inf"}


def _ranges(prefix: str, **bad: tuple[str, ...]) -> dict[str, BadInput]:
    """`prefix.name=value`, of which the sentence names both (a NaN as nan)."""
    return {
        f"{prefix}.{name}={value}": setting(
            f"{prefix}.{name}", _OF.get(value, value), prefix.split(".")[0], name, value
        )
        for name, values in bad.items()
        for value in values
    }


def _classes(prefix: str, class_path: str, **bad: tuple[str, ...]) -> dict[str, BadInput]:
    """Values of a class that takes the place of the quick start's."""
    return {
        f"{class_path.rpartition('.')[2]}.{name}={value}": BadInput(
            (f"--{prefix}={class_path}", f"--{prefix}.{name}={_OF.get(value, value)}"), (prefix, name, value)
        )
        for name, values in bad.items()
        for value in values
    }


_UNKNOWN = {
    f"unknown key {key}": option(f"{key}=1", key.rpartition(".")[2])
    for key in (
        "prompt_count",
        "modle.policy",
        "model.prompt_count",
        "model.advantage.gamma",
        "model.objective.gamma",
        "model.optimizer.gamma",
        "model.loss.gamma",
        "model.loss.correction.gamma",
        "model.loss.adaptive_entropy.gamma",
        "model.loss.entropy_advantage.gamma",
        "model.lora.dropout",
        "data.prompts_a_step",
        "data.train.gamma",
        "data.verifiers.gamma",
        "rollout.groupsize",
        "rollout.engine.gamma",
        "rollout.transformers.gamma",
        "rollout.canary.gamma",
        "rollout.dynamic_sampling.gamma",
        "rollout.second_opinion.gamma",
        "checkpoint.gamma",
        "tensorboard.gamma",
        "trainer.gamma",
    )
}

_TYPES = {
    f"wrong type {argument}": option(argument)
    for argument in (
        "steps=1.5",
        "steps=nan",
        "seed_everything=x",
        "seed_everything=0.5",
        "model.loss=5",
        "model.loss.aggregation=median",
        "model.loss.kl_coef=strong",
        "model.loss.overlong_buffer=1.5",
        "model.loss.adaptive_entropy=5",
        "model.loss.correction.mode=clip",
        "model.loss.correction.level=word",
        "model.loss.old_logprobs=both",
        "model.micro_batch_tokens=many",
        "model.gradient_checkpointing=maybe",
        "model.attention=flash",
        "model.advantage=5",
        "model.shaping=5",
        "data.prompts_per_step=many",
        "data.bad_rows=ignore",
        "data.verifiers.workers=1.5",
        "data.validation=5",
        "rollout.group_size=2.5",
        "rollout.temperature=warm",
        "rollout.truncated=right",
        "rollout.sampler=tgi",
        "rollout.engine.dtype=int8",
        "rollout.engine.max_num_seqs=0.5",
        "rollout.engine.extra=5",
        "rollout.canary.digest=5",
        "rollout.dynamic_sampling.max_rounds=x",
        "rollout.second_opinion=5",
        "rollout.second_opinion.window=0.5",
        "checkpoint.every_n_steps=x",
        "tensorboard.samples=x",
        "trainer.precision=8-bit",
        "trainer.detect_anomaly=5",
    )
}

_RANGES = (
    _ranges(
        "model",
        updates_per_step=("0", "-1"),
        passes_per_step=("0",),
        micro_batch_tokens=("0",),
        max_grad_norm=("0", "-1", "nan"),
    )
    | _ranges(
        "model.advantage.init_args",
        beta_pos=("-1", "nan", "inf"),
        beta_neg=("-1", "nan"),
        scale_pos=("-1", "inf"),
        scale_neg=("-1", "nan"),
        cap=("0", "nan"),
        flip=("upwards",),
        degenerate_groups=("skip",),
    )
    | _ranges("model.objective.init_args", clip_low=("0", "2", "nan"), clip_high=("0", "nan"), dual_clip=("1", "nan"))
    | _ranges("model.loss", kl_coef=("-0.1", "nan", "inf"), entropy_coef=("-1", "nan"), overlong_buffer=("0",))
    | _ranges(
        "model.loss.adaptive_entropy",
        target=("0", "nan"),
        delta=("0", "inf"),
        max_coef=("-1", "nan"),
        coef=("1", "nan"),
    )
    | _ranges("model.loss.entropy_advantage", alpha=("0", "nan", "inf"), kappa=("1", "nan", "inf"))
    | _ranges("model.loss.correction", threshold=("0.5", "nan"))
    | _ranges("model.lora", rank=("0", "-3", "1.5"), alpha=("0", "-1", "nan", "inf"))
    | _ranges("model.optimizer.init_args", lr=("-1", "nan", "inf"), weight_decay=("-1", "nan"), eps=("-1",))
    | _ranges("data", prompts_per_step=("0", "-5"), repeat_steps=("0",), max_prompt_tokens=("0", "100"))
    | _ranges(
        "data.verifiers",
        workers=("0", "257"),
        timeout_s=("0", "-1", "nan", "inf"),
        memory_gib=("0.1", "nan"),
        sandbox=("perhaps",),
    )
    | _ranges(
        "rollout",
        group_size=("1", "0"),
        max_completion_tokens=("0", "100"),
        temperature=("0", "-1", "nan", "inf"),
        top_p=("0", "1.5", "nan", "0.9"),
        top_k=("-1",),
        min_p=("1", "-0.1", "nan"),
        max_verifier_failures=("-0.1", "2", "nan"),
        max_engine_restarts=("-1",),
    )
    | _ranges(
        "rollout.engine",
        max_num_seqs=("0",),
        max_model_len=("0", "5"),
        tensor_parallel_size=("0",),
        kv_cache_gib=("0",),
        gpu_memory_utilization=("0", "1.5", "nan"),
    )
    | _ranges("rollout.transformers", batch_tokens=("0",))
    | _ranges("rollout.canary", completions=("-1",), max_logprob_diff=("0", "nan"))
    | _ranges("rollout.dynamic_sampling", max_rounds=("0",))
    | {
        f"second opinion {name}={value}": BadInput(
            ("--rollout.second_opinion.verifier=NumericMatch", f"--rollout.second_opinion.{name}={value}"),
            (f"rollout.second_opinion.{name}", value),
        )
        for name, values in (
            ("share", ("0", "1.5", "nan")),
            ("max_disagreement", ("-0.1", "1", "nan")),
            ("window", ("0",)),
        )
        for value in values
    }
    | _ranges("checkpoint", every_n_steps=("0",), keep=("0",))
    | _ranges("tensorboard", every_n_steps=("0",), samples=("-1",), change_completions=("-1",))
    | _ranges(
        "trainer",
        val_check_interval=("0", "0.5"),
        log_every_n_steps=("0",),
        devices=("0",),
        num_nodes=("0",),
        accelerator=("tpu",),
        strategy=("quick",),
        precision=("16-mixed", "64-true"),
        fast_dev_run=("5",),
        limit_train_batches=("5", "0.5"),
        num_sanity_val_steps=("2",),
        check_val_every_n_epoch=("1",),
        overfit_batches=("1",),
        accumulate_grad_batches=("2",),
    )
    | {
        f"Lightning's {name}": option(f"trainer.{name}={value}", f"trainer.{name}", instead)
        for name, value, instead in (
            ("max_steps", "5", "steps"),
            ("max_epochs", "5", "steps"),
            ("gradient_clip_val", "1", "model.max_grad_norm"),
            ("max_time", "00:01:00:00", "time_limit"),
            ("default_root_dir", "x", "run_dir"),
            ("enable_checkpointing", "false", "checkpoint.every_n_steps"),
        )
    }
    | {f"{key}={value}": option(f"{key}={value}") for key, value in (("steps", "0"), ("seed_everything", "-1"))}
    | {"a seed beyond 32 bits": option("seed_everything=4294967296")}
    | {f"time_limit={value}": option(f"time_limit={value}") for value in ("abc", "0", "-5")}
)

OTHER_CLASSES = (
    _classes("model.advantage", "asymgrpo_app.algorithm.baselines.GroupNormalized", eps=("-1", "nan"))
    | _classes("model.advantage", "asymgrpo_app.algorithm.baselines.PassAtK", k=("0", "9"))
    | _classes("model.objective", "asymgrpo_app.algorithm.gspo.GSPO", clip_low=("-1",))
    | _classes(
        "model.objective", "asymgrpo_app.algorithm.covariance.ClipCov", share=("0", "2", "nan"), cov_low=("5", "nan")
    )
    | _classes("model.objective", "asymgrpo_app.algorithm.covariance.KLCov", share=("0",), kl_coef=("-1", "inf"))
    | _classes("model.lr_scheduler", "torch.optim.lr_scheduler.StepLR", step_size=("0",))
    | _classes("model.lr_scheduler", "torch.optim.lr_scheduler.CosineAnnealingLR", T_max=("0",))
    | _classes("model.optimizer", "torch.optim.SGD", momentum=("-1",))
    | {
        "a schedule by validation": BadInput(
            ("--model.lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau",),
            ("model.lr_scheduler", "ReduceLROnPlateau", "goes by steps"),
        ),
        "an optimizer that wants a closure": option("model.optimizer=torch.optim.LBFGS", "model.optimizer", "LBFGS"),
        "a schedule without an end": option("model.advantage.beta_pos={kind: linear, start: 0.5}", "linear", "end"),
        "a schedule to nan": option(
            "model.advantage.beta_pos={kind: linear, start: 0.5, end: .nan}", "model.advantage", "beta_pos", "nan"
        ),
        "a form that requires nothing": setting(
            "model.shaping",
            "[{class_path: FormatPenalty, init_args: {required: []}}]",
            "model.shaping",
            "required",
            "[]",
        ),
        "a penalty of nothing": setting(
            "model.shaping",
            "[{class_path: FormatPenalty, init_args: {required: [a], penalty: 0}}]",
            "model.shaping",
            "penalty",
            "0",
        ),
    }
)

_KINDS = {
    f"{key} of another kind: {name}": option(f"{key}={name}")
    for key, name in (
        ("model.advantage", "asymgrpo_app.algorithm.clipped.ClippedObjective"),
        ("model.advantage", "torch.nn.Linear"),
        ("model.advantage", "os.path.join"),
        ("model.advantage", "NoSuchAdvantage"),
        ("model.objective", "collections.OrderedDict"),
        ("model.objective", "no_such_module.Objective"),
        ("model.optimizer", "torch.nn.Linear"),
        ("model.optimizer", "NoSuchOptimizer"),
        ("model.lr_scheduler", "torch.optim.AdamW"),
        ("data.train", "asymgrpo_app.algorithm.advantages.AsymGRPO"),
        ("data.train", "NoSuchSource"),
        ("data.template", "NoSuchTemplate"),
        ("rollout.second_opinion.verifier", "NoSuchVerifier"),
        ("rollout.second_opinion.verifier", "asymgrpo_app.algorithm.advantages.AsymGRPO"),
        ("trainer.logger", "NoSuchLogger"),
    )
}

CONFLICTS = {
    "uneven updates": option("model.updates_per_step=7", "data.prompts_per_step", "64", "7"),
    "a ramp beyond the limit": option("model.loss.overlong_buffer=11", "model.loss.overlong_buffer", "11", "10"),
    "two entropy bonuses": BadInput(
        ("--model.loss.entropy_coef=0.1", "--model.loss.adaptive_entropy={}"), ("model.loss.entropy_coef", "0.1")
    ),
    "corrected twice": BadInput(
        ("--model.loss.old_logprobs=sampler", "--model.loss.correction.mode=mask"),
        ("model.loss.correction.mode", "mask"),
    ),
    "refilling groups that teach": BadInput(
        (
            "--rollout.dynamic_sampling={}",
            "--model.advantage.degenerate_groups=keep",
            "--model.advantage.beta_pos=0",
        ),
        ("rollout.dynamic_sampling", "AsymGRPO"),
    ),
    "a second opinion without a verifier": option("rollout.second_opinion={}", "rollout.second_opinion", "verifier"),
    "shaped twice": BadInput(
        ("--model.loss.entropy_advantage={}", "--model.objective=asymgrpo_app.algorithm.covariance.ClipCov"),
        ("model.loss.entropy_advantage", "ClipCov"),
    ),
    "engine option that opens a server": option(
        "rollout.engine.extra.host=0.0.0.0", "rollout.engine.extra", "set host"
    ),
    "engine option that loads code": option(
        "rollout.engine.extra.worker_cls=a.B", "rollout.engine.extra", "worker_cls"
    ),
    "engine option with dashes": option("rollout.engine.extra.max-model-len=9", "rollout.engine.extra.max-model-len"),
    "reserved engine option": option("rollout.engine.extra.load_format=auto", "rollout.engine.extra", "load_format"),
    "adapters of no layers": setting("model.lora", "{target_modules: []}", "model.lora.target_modules", "empty"),
    "adapters of a layer that is not there": setting(
        "model.lora", "{target_modules: [q_proj, qproj]}", "model.lora.target_modules", "'qproj'", "q_proj, up_proj"
    ),
    "adapters of the output head": setting(
        "model.lora", "{target_modules: [lm_head]}", "model.lora.target_modules", "'lm_head'"
    ),
    "an export of adapters of another kind": setting("model.lora", "{export: gguf}", "model.lora.export", "gguf"),
    "weights in bfloat16": option("trainer.precision=bf16-true", "trainer.precision", "bf16-true", "lose most updates"),
    "a server without an address": option("rollout.sampler=server", "rollout.server"),
    "a certificate without https": BadInput(
        (f"--rollout.server={_SERVER[:-1]}, certificate_file: a.pem}}", "--rollout.sampler=server"),
        ("rollout.server.certificate_file", "http://a:1"),
    ),
    "a password in a server's address": BadInput(
        ("--rollout.server={urls: ['http://:word@a:1'], weights_folder: w}", "--rollout.sampler=server"),
        ("rollout.server.urls", "no address"),
    ),
    "a token that others can read": BadInput(
        (f"--rollout.server={_SERVER}", "--rollout.sampler=server"),
        ("rollout.server.token_file", "token.txt", "chmod 600"),
        {"token.txt": "a-token-for-the-tests"},
    ),
    "more processes than prompts": BadInput(
        ("--trainer.devices=3", "--trainer.strategy=ddp", "--data.prompts_per_step=2"),
        ("data.prompts_per_step", "2", "3"),
    ),
    "a linked key": option("data.seed=4", "data.seed", "seed_everything"),
    "a link to the policy": option("data.tokenizer=x", "data.tokenizer", "model.policy"),
    "a key that is gone": option("data.use_chat_template=true", "data.use_chat_template"),
    "a length of the run that Lightning counts": setting("trainer.max_steps", "5", "trainer.max_steps", "steps"),
    "null for a number": setting("data.prompts_per_step", "null", "data.prompts_per_step", "null"),
    "null for a length": setting("trainer.log_every_n_steps", "null", "trainer.log_every_n_steps", "None"),
}

CONFLICTS |= trainer.OF_OBJECTS
CASES = _UNKNOWN | _TYPES | _RANGES | OTHER_CLASSES | _KINDS | CONFLICTS | trainer.OF_OPTIONS
