"""Search of a network study: its trials train together, in populations."""
