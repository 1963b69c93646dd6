"""Base of the LightningModule that holds policy, adapters, reference and optimizer."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from transformers import PreTrainedModel

from asymgrpo_app.evaluation.module import EvaluatingModule
from asymgrpo_app.microbatch.microbatch import TokenSequence
from asymgrpo_app.parallel.sharding import shard
from asymgrpo_app.policy.compilation import compile_blocks
from asymgrpo_app.policy.loading import AttentionImplementation, load_policy
from asymgrpo_app.policy.lora import LoRAConfig
from asymgrpo_app.policy.lora_files import adapted, check_checkpoint, label_checkpoint
from asymgrpo_app.update.passes import ForwardPasses


class PolicyModule(EvaluatingModule):
    """Loads policy, adapters, reference and optimizer; for the arguments see `AsymGRPOModule`.

    Attributes:
        policy: The model; set by `configure_model`.
        weight_version: Changes whenever the policy's weights do; a sampler compares it with its own.
    """

    def __init__(
        self,
        policy_path: str,
        total_steps: int,
        *,
        micro_batch_tokens: int,
        attention: AttentionImplementation,
        gradient_checkpointing: bool,
        compile_blocks: bool,
        lora: LoRAConfig | None,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
    ) -> None:
        super().__init__(total_steps)
        self.policy_path = policy_path
        self.micro_batch_tokens = micro_batch_tokens
        self.attention = attention
        self.gradient_checkpointing = gradient_checkpointing
        self.compile_blocks = compile_blocks
        self.lora = lora
        self.strict_loading = lora is None  # a checkpoint of adapters holds no other weights; see `on_load_checkpoint`
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler
        self.weight_version = 0
        self._base = ""  # fingerprint of the frozen base weights, for checkpoints of adapters
        self._passes: list[ForwardPasses] = []  # in a list: models in it stay out of the module tree, and checkpoints

    def configure_model(self) -> None:
        """Load the policy. Lightning may call this twice."""
        if hasattr(self, "policy"):
            return
        policy = load_policy(self.policy_path, self.attention)
        if self.lora is not None:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            self._base = adapted(policy, self.lora, self.policy_path, data.seed, in_bfloat16=self.in_bfloat16)
        self.policy = policy
        if self.gradient_checkpointing:
            self.policy.gradient_checkpointing_enable({"use_reentrant": False})
        self.policy.train()
        if self.compile_blocks:
            compile_blocks(self.policy)
        if self.device_mesh is not None:  # set by a strategy that shards
            shard(self.policy, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer([weight for weight in self.policy.parameters() if weight.requires_grad])
        if self.make_lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.make_lr_scheduler(optimizer)}

    def label_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """In a run with adapters, reduce a checkpoint to these and record what they belong to."""
        if self.lora is not None:
            label_checkpoint(checkpoint, self.lora, self.policy_path, self._base, rounded=self.in_bfloat16)

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint whose adapters are not the run's; called before its weights are loaded."""
        check_checkpoint(checkpoint, self.lora, self.policy, self._base, str(self.trainer.ckpt_path))
        self.weight_version += 1

    @property
    def in_bfloat16(self) -> bool:
        """Whether forward and backward passes compute in bfloat16."""
        return "bf16" in str(self.trainer.precision)

    @property
    def passes(self) -> ForwardPasses:
        """Forward passes of the policy, and of the reference once it is loaded."""
        if not self._passes:
            self._passes.append(ForwardPasses(self.policy, self.micro_batch_tokens))
        return self._passes[0]

    def load_reference(self) -> None:
        """Load the reference model of the KL term; with LoRA it is the policy with its adapters off."""
        if self.passes.reference is not None:
            return
        if self.lora is not None:
            self.passes.reference = self.policy
            return
        reference: PreTrainedModel = load_policy(self.policy_path, self.attention).eval().requires_grad_(False)
        if self.device_mesh is not None:
            shard(reference, self.device_mesh["data_parallel"])
        nn.Module.to(reference, self.device)
        self.passes.reference = reference

    def sequence_logprobs(self, sequences: Sequence[TokenSequence], temperature: float) -> list[Tensor]:
        """Log-probabilities of each completion's tokens under the policy as it is now, on the CPU."""
        return self.passes.of_sequences(sequences, temperature, self.trainer.precision_plugin.forward_context())
