"""Lightning callbacks: rollouts, checkpoints, export, progress and the closing summary."""
