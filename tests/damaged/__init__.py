"""Crafted inputs, one after the other given to what reads them.

    python -m tests.damaged

writes the table of what each of them produced into README.md.
"""
