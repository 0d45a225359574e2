"""optuna-dashboard as a server with a password, rate limits and checks of every request."""
