"""Bad configs, data and input as tables, each run in a process of its own (`run_all.py`)."""
