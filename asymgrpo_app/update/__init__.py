"""From judged rollouts to optimizer updates, and what a step says about itself."""
