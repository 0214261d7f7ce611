"""How many calls hit, and how many hits are wrong."""
