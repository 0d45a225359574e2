"""Narrowing: smaller ranges around the best trials, and the study file of the next search."""
