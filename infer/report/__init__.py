"""The report of an evaluation: a page of HTML and its figures; `infer/evaluate.py` loads it."""
