"""What a run's evaluated images tell: the report, the model card, and comparisons of runs."""
