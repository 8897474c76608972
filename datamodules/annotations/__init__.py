"""Labels, boxes and masks as records, and the checks that they pass before training."""
