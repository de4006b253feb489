"""Datasets as labelling tools export them, each format read by a module of its own."""
