"""The task: extractive question answering on SQuAD-format data.

Pure functions on corpora, tokenizers and arrays; nothing here knows a study or a training loop.
"""
