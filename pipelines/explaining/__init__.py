"""Explanations: which pixels a network answers by, and how far such a picture can be trusted."""
