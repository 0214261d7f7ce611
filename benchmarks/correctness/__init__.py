"""How often the semantic layer serves, and how often it serves the wrong answer."""
