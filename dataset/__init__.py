"""Annotated pictures: reading, checking, transforms, batches."""

import utils  # noqa: F401, looks for missing packages before they are imported
