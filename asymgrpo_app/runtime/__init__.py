"""The process and its surroundings: signals, console, environment variables, memory of the allocator."""
