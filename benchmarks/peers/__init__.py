"""Other caches, each in an environment of its own, driven as their own users would call them."""
