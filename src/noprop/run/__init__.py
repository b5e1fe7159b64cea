"""A run: a folder, and the processes that work in it."""
