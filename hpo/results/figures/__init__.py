"""Figures of studies, drawn with plotly: one module for each figure, the same in files and in the dashboard.

`kinds` lists them, `source` reads their data, `style` defines their look, `files` writes them. No study is changed.
"""
