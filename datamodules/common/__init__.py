"""What tasks and datamodules share; it imports nothing else of ours."""
