"""What the studies judge by: claims with their sources, one rule for each, and verdicts from tables."""
