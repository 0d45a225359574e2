"""Confirmation: the best configurations, the baseline and the first trial, trained again under fresh seeds."""
