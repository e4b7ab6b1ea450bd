"""What users run: objectives, the optimizer of their loop, the trainer."""
