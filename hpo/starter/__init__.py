"""Starter study files, written by `hpo init`, and the JSON Schema with which an editor completes and checks them."""
