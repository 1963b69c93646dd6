"""Checkpoints on disk: files that prove to be whole, their folder, and the changes that a resume allows."""
