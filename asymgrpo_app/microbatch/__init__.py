"""Cutting completions into forward passes of bounded size, padded or packed."""
