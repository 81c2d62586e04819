"""A trained model as others read it: Hugging Face's folder, PEFT's adapter, llama.cpp's file; with a model card."""
