"""optuna-dashboard behind a guarded server."""
