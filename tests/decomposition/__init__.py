"""Tests of the break-up of a sum."""
