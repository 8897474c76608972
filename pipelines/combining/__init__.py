"""``ensemble``: members that are trained, combined, and reported beside the best of them."""
