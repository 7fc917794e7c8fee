"""Split fine-tuning on Flower, in two short files."""
