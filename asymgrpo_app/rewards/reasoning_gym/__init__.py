"""The tasks of reasoning-gym as a verifier."""
