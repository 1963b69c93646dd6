"""`python -m asymgrpo_app`."""

from asymgrpo_app.cli import entry_point

if __name__ == "__main__":
    entry_point()
