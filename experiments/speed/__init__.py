"""Speed, side by side in one run: a command each."""
