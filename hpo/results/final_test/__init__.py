"""The sealed test: one evaluation of the selected configuration on the test set, its model folder, and predictions."""
