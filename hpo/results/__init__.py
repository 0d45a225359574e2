"""What comes out of a search: progress while it runs, the ranking, the table of studies, the export.

It reads what `search` and `storage` left behind and shows it; nothing here changes a study.
"""
