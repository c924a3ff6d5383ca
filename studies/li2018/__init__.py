"""Li et al. 2018: the loss around the weights, with and without skips."""
