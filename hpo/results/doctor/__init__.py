"""Checks of `hpo doctor`: storage, data sets, packages, devices and threads."""
