"""Measure training on this machine, and choose what is fastest."""
