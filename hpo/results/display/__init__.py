"""Text for terminals and notebooks: progress of a launch, its summary, tables."""
