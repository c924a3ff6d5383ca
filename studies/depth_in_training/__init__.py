"""Whether the ensemble of paths gets deeper in training."""
