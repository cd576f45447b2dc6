"""Whether every strategy computes the same, how fast and how large it is, on the accelerators that there are."""
