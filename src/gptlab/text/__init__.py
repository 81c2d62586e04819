"""Text and tokens: the tokenizer and its files. Nothing here imports torch."""
