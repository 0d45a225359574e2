"""Comparison of configurations over seeds: runs, table, statistics."""
