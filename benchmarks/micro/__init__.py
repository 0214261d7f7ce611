"""Small measurements, side by side with the bare command that each of them cannot beat."""
