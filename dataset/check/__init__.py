"""Parts of `dataset/check_dataset.py`: annotations and images looked through, counted, drawn."""
