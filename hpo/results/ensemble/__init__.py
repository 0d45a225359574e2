"""Ensembles: trials with stored weights whose predictions are averaged, selected on the validation split."""
