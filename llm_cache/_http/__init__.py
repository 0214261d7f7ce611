"""All that talks outwards through the openai SDK."""
