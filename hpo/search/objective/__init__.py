"""Search of an objective study: its trials run one after the other in the objective function."""
