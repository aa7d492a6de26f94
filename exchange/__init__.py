"""Models in files: ours, those of Hugging Face's transformers and those of llm.c, all read into a `Checkpoint`."""
