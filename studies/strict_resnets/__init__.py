"""Strict residual U-Nets: shares of their blocks, plateaus, depth and width, and checkerboards."""
