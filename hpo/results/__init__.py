"""Results of studies: export, confirmation, test evaluation, verification, comparison, figures, progress displays.

One room for each task. Most modules only read studies; those that store something say so.
"""
