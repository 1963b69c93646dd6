"""`model.compile`: torch.compile for the transformer blocks of the policy."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

import torch

from asymgrpo_app.errors import UserError
from asymgrpo_app.policy import packed_attention
from asymgrpo_app.policy.loading import transformer_blocks

_WORKERS = "TORCHINDUCTOR_COMPILE_THREADS"
# vLLM sets the variable to 1 when it is imported, for its own processes; what was there before is the user's.
_ASKED_WORKERS = None if "vllm" in sys.modules else os.environ.get(_WORKERS)

if TYPE_CHECKING:  # transformers takes seconds to import, which a wrong key should not wait for
    from transformers import PreTrainedModel


def check_compiler(device: str) -> None:
    """Refuse to compile without a compiler: torch takes a C++ compiler on a CPU, and Triton a C compiler on a GPU.

    Args:
        device: The kind of device that the policy is trained on.

    Raises:
        UserError: There is none under the names that torch or Triton try.
    """
    if device == "cpu":
        kind, package = "C++", "g++"
        names = [os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")]
    else:
        kind, package = "C", "gcc"
        names = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    if not any(shutil.which(name) for name in names):
        raise UserError(
            f"model.compile needs a {kind} compiler on this machine, and there is none ({', '.join(names)}): install "
            f"one (Debian: apt-get install {package}), or leave model.compile out."
        )


def compile_workers() -> int:
    """How many workers compile at the same time: torch's own rule, whether or not vLLM was imported before."""
    if _ASKED_WORKERS:
        return int(_ASKED_WORKERS)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(32, cores or 1)


def compile_blocks(policy: PreTrainedModel) -> None:
    """Compile each transformer block in place at its first call, once for all lengths; names of weights stay.

    Blocks of one kind share one compiled form, so that a deep model takes no longer than a shallow one. Attention over
    packed rows is not compiled: its batches have other shapes in every micro-batch.

    Raises:
        UserError: The architecture does not say which of its modules are transformer blocks.
    """
    from transformers import AttentionInterface

    blocks = transformer_blocks(policy)
    if not blocks:
        raise UserError(
            f"model.compile does not know the transformer blocks of architecture {policy.config.model_type}: leave it "
            "out."
        )
    AttentionInterface.register(packed_attention.NAME, torch.compiler.disable(packed_attention.packed_attention))
    for block in blocks:
        # Not `block.compile`, which takes in hooks as well: those of FSDP2 differ from block to block.
        block.forward = torch.compile(block.forward, dynamic=True, options={"compile_threads": compile_workers()})
