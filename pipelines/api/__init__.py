"""What ``import pipelines`` offers: a loaded model, its results, and the commands as functions."""
