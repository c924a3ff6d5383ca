"""The claims of Veit et al. 2016 on a language model."""
