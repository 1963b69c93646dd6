"""Distributed training of one policy: collective operations, sharding (FSDP2), and what it requires of a config."""
