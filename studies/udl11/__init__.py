"""Growth laws at initialisation: chapter 11 of S. J. D. Prince, "Understanding Deep Learning", measured."""
