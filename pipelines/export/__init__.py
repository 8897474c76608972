"""From a checkpoint to a file that runs elsewhere, and the proof that it is the same model."""
