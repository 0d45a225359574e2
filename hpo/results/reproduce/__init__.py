"""Reproduction: stored and exported trials trained again, each alone, and their curves compared."""
