"""Known data sets: the catalogue, downloads, the folders in which files are found, and the readers of their formats."""
