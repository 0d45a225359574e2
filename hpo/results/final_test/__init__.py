"""The sealed test: one evaluation of the selected configuration on the test set, its weights, and predictions."""
