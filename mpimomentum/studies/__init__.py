"""Studies: one question a file, answered by one JSON and one figure."""
