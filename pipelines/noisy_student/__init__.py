"""Noisy student: labeling, selection, the loop over generations, and the report of its gain."""
