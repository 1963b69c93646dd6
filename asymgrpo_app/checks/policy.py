"""Looks at the policy's files before a run: whether they hold the weights that its config asks for."""

from asymgrpo_app.module import AsymGRPOModule
from asymgrpo_app.policy.loading import empty_policy, load_config
from asymgrpo_app.policy.weight_files import check_weights


def check_policy(module: AsymGRPOModule) -> list[str]:
    """Check the files of the policy's weights, of which only the heads are read; returns notes, one sentence each.

    Raises:
        UserError: A tensor is missing, does not fit, or is a head that the config says is the embedding.
    """
    return check_weights("model.policy", module.policy_path, empty_policy(load_config(module.policy_path)))
