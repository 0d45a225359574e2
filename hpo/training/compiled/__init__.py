"""Passes over activations and weights in C, compiled on the user's machine."""
