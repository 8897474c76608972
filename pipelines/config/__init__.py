"""Reading configs, and saying in one sentence what is wrong with them."""
