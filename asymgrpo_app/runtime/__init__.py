"""The process and its environment: signals, console, environment variables, memory of the allocator."""
