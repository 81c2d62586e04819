"""What a model is worth: scores on text, and what it writes."""
