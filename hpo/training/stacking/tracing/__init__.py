"""Trace the members' modules into one graph, and refuse the modules whose graph would not be theirs."""
