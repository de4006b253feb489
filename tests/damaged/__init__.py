"""Crafted inputs, one after the other given to what reads them.

    python -m tests.damaged > docs/damaged_files.md

prints the table of what each of them produced.
"""
