"""What a verifier makes of equal answers written otherwise, of near misses, and of completions that try to cheat it."""
