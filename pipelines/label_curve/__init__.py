"""Label curves: the metric against the number of labels, and what more of them, or unlabeled images, are worth."""
