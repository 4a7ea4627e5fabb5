"""The commands of ``python -m scripts.cli``, one file each, and how they write to the terminal."""
