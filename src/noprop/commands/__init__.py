"""The commands, each with its options in a file; what needs torch is imported when one runs."""
