"""Figures of studies: plotly's, drawn from what the storage holds, the same in a file and in the dashboard.

A module a figure; `style` is what they look alike by. Nothing here writes a file or changes a study.
"""
