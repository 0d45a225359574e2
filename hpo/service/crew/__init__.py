"""Crews: the workers of one launch, as local processes or on Ray."""
