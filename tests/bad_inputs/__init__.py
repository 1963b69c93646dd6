"""Bad configs, data and input as tables, and the process that runs them all (see `tests/test_bad_input.py`)."""
