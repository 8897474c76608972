"""What watches a run without being part of the model."""
