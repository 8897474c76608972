"""Pictures, figures and prediction files; nothing here knows of a Trainer."""
