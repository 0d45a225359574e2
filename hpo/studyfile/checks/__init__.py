"""Check a study file as a whole, with an error line for each problem."""
