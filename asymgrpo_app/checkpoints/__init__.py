"""Checkpoints on disk: files that prove to be whole, the folder that holds them, and what a resume may change."""
