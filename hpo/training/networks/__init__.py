"""Networks as plain torch modules: built-in and user-defined networks, initial weights, weights files."""
