"""The model: GPT-2, the fused head and loss, the cache for decoding, Hugging Face's files."""
