"""`model.compile`: torch.compile for the transformer blocks of the policy."""

import os
import shutil

import torch
from transformers import AttentionInterface, PreTrainedModel

from asymgrpo_app import packed_attention
from asymgrpo_app.errors import UserError
from asymgrpo_app.policy import transformer_blocks

_COMPILERS = ("g++", "clang++", "c++")


def check_compiler() -> None:
    """Refuse to compile on a machine without a GPU that has no C++ compiler, which is what torch compiles with there.

    Raises:
        UserError: There is none.
    """
    names = [os.environ["CXX"]] if os.environ.get("CXX") else list(_COMPILERS)
    if not torch.cuda.is_available() and not any(shutil.which(name) for name in names):
        raise UserError(
            f"model.compile needs a C++ compiler on this machine, and there is none ({', '.join(names)}): install one "
            "(Debian: apt-get install g++), or leave model.compile out."
        )


def compile_blocks(policy: PreTrainedModel) -> None:
    """Compile each transformer block in place at its first call, once for all lengths; names of weights stay.

    Blocks of one kind share one compiled form, so that a deep model takes no longer than a shallow one. Attention over
    packed rows stays as it is: its cut into batches is another one in every micro-batch.

    Raises:
        UserError: The architecture does not say which of its modules are transformer blocks.
    """
    blocks = transformer_blocks(policy)
    if not blocks:
        raise UserError(
            f"model.compile does not know the transformer blocks of architecture {policy.config.model_type}: leave it "
            "out."
        )
    AttentionInterface.register(packed_attention.NAME, torch.compiler.disable(packed_attention.packed_attention))
    for block in blocks:
        block.compile(dynamic=True)
