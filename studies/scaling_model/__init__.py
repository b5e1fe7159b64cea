"""Time, traffic and memory of T blocks on P machines, on paper (docs/scaling.md)."""
