"""A sampler with old weights stops the run in the very step that would have sampled from them."""

from tests.support.canary_contract import CanaryContract


class TestCanary(CanaryContract):
    """In float32."""
