"""Hyperparameter search and model selection for extractive question answering."""

__version__ = "0.1.0"
