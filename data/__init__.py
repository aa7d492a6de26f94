"""What the models learn from: texts (corpora, plays, encoding, tokens, batches) and tables of modular arithmetic."""
