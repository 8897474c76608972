"""Matching, average precision, curves and kinds of errors of detections, in original pixels."""
