"""Noisy student: labelling, selection, the loop over generations, and the account of its gain."""
