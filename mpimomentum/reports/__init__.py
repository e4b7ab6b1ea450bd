"""What is made of a run directory's files: traces of all ranks in one, a page, a live view."""
