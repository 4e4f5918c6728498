"""Benchmarks, run by hand from the project's root: `python -m bench --help`."""
