"""What is looked at before a run starts, and what it says about itself: sizes, memory, precision."""
