"""What ``noprop bench`` measures: ours against the plain loop, in one run, and against a bound."""
