"""Processes that work on a study, and what launches them."""
