"""Runs over machines: processes that torchrun started."""
