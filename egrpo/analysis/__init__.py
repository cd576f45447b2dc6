"""The entropy-reward study: records of many images, their statistics, and the report."""
