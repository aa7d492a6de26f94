"""What every program here stands on: its options and errors, its progress, its files, its device, its run folder."""
