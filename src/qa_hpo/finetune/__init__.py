"""One fine-tuning run: a configuration in, epoch records and a checkpoint out."""
