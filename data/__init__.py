"""The inputs: corpora of text (`data.text`)."""
