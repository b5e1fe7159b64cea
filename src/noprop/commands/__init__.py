"""The commands, one per file with its options; torch is imported only when a command runs."""
