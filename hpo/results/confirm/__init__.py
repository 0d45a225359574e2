"""Confirmation: the best configurations and the baseline, trained again under fresh seeds."""
