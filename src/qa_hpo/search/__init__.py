"""The study: what is searched, when a trial stops, and what the storage remembers."""
