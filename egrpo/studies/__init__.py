"""Studies: many runs read back from a sweep's folder, compared over seeds, drawn and told."""
