"""Export: the best trial, the Pareto front or all trials, as JSON or CSV."""
