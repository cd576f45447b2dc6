"""The ground floor: what every part of the package may use. It imports nothing else of ours."""
