"""Hostile input: thousands of files and arguments over which no command may stumble."""
