"""From `results.json` to a report that people read."""
