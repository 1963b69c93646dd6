"""Base of the LightningModule that holds policy, adapters, reference and optimizer."""

from collections.abc import Sequence
from typing import Any, Never

from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from asymgrpo_app.errors import UserError
from asymgrpo_app.evaluation.module import EvaluatingModule
from asymgrpo_app.microbatch.microbatch import TokenSequence
from asymgrpo_app.parallel.sharding import shard
from asymgrpo_app.policy.compilation import compile_blocks
from asymgrpo_app.policy.loading import AttentionImplementation, load_policy
from asymgrpo_app.policy.lora import LoRAConfig
from asymgrpo_app.policy.lora_files import adapted
from asymgrpo_app.update.passes import ForwardPasses
from asymgrpo_app.update.trainer_settings import check_trainer


class PolicyModule(EvaluatingModule):
    """Loads policy, adapters, reference and optimizer, by the settings of its subclass, `AsymGRPOModule`.

    Attributes:
        policy: The model; set by `configure_model`.
        passes: Forward passes of the policy, and of its reference once that is loaded.
        weight_version: Changes whenever the policy's weights do; a sampler compares it with its own.
        base: Fingerprint of the frozen base weights, for checkpoints of adapters; empty without them.
    """

    policy_path: str
    micro_batch_tokens: int
    attention: AttentionImplementation
    gradient_checkpointing: bool
    compile_blocks: bool
    lora: LoRAConfig | None
    make_optimizer: OptimizerCallable
    make_lr_scheduler: LRSchedulerCallable | None
    weight_version: int = 0
    base: str = ""

    def configure_callbacks(self) -> list[Callback]:
        """Check the trainer; there are no callbacks to add. Of all hooks Lightning calls this one first."""
        trainer: Any = self.trainer
        check_trainer(trainer)
        trainer.num_sanity_val_steps = 0  # a run validates before its first step by itself
        return []

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *_: Any, **__: Any) -> Never:
        """Refused: a checkpoint holds what was trained, and the objects around it are for the caller to build.

        Raises:
            UserError: Always, with what to do.
        """
        raise UserError(
            f"AsymGRPOModule.load_from_checkpoint cannot rebuild the objects of a run from {checkpoint_path}: build "
            f'them as before and call trainer.fit, validate or predict with ckpt_path="{checkpoint_path}", or write '
            "the trained model as a Hugging Face folder (asymgrpo export; docs/python.md)."
        )

    def configure_model(self) -> None:
        """Load the policy. Lightning may call this twice."""
        if hasattr(self, "policy"):
            return
        policy = load_policy(self.policy_path, self.attention)
        if self.lora is not None:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            self.base = adapted(policy, self.lora, self.policy_path, data.seed, in_bfloat16=self.in_bfloat16)
        if self.gradient_checkpointing:
            policy.gradient_checkpointing_enable({"use_reentrant": False})
        policy.train()
        if self.compile_blocks:
            compile_blocks(policy)
        if self.device_mesh is not None:  # set by a strategy that shards
            shard(policy, self.device_mesh["data_parallel"])
        self.policy, self.passes = policy, ForwardPasses(policy, self.micro_batch_tokens)

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer([weight for weight in self.policy.parameters() if weight.requires_grad])
        if self.make_lr_scheduler is None:
            return optimizer
        # Manual optimization goes by no interval, but LearningRateMonitor writes at each.
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_lr_scheduler(optimizer), "interval": "step"},
        }

    def load_reference(self) -> None:
        """Load the reference model of the KL term; with LoRA it is the policy with its adapters off."""
        reference = self.policy
        if self.lora is None:
            reference = load_policy(self.policy_path, self.attention).eval().requires_grad_(False)
            if self.device_mesh is not None:
                shard(reference, self.device_mesh["data_parallel"])
            nn.Module.to(reference, self.device)
        self.passes.reference = reference

    @property
    def in_bfloat16(self) -> bool:
        """Whether forward and backward passes compute in bfloat16."""
        return "bf16" in str(self.trainer.precision)

    def sequence_logprobs(self, sequences: Sequence[TokenSequence], temperature: float) -> list[Tensor]:
        """Log-probabilities of each completion's tokens under the policy as it is now, on the CPU."""
        return self.passes.of_sequences(sequences, temperature, self.trainer.precision_plugin.forward_context())
