"""Networks as plain torch modules: built-in and user-defined, their initial weights and their files."""
