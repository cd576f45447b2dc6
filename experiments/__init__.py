"""Studies, a folder each: the command, results as CSV, figures, README."""
