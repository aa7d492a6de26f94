"""The inputs: corpora of text (`data.text`) and tables of modular arithmetic (`data.modular`)."""
