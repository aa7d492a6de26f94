"""What the scripts do when they are run: one file for each verb, with its options."""
