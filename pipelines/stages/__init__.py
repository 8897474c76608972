"""What a command does in steps: each is done once and found again, in this process or behind a launcher."""
