"""Search: sample configurations, claim and train trials, prune them and store their results.

Uses Optuna; knows neither layers nor SQL.
"""
