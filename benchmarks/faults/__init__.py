"""What the cache does while Redis, the network or the embedder misbehaves, with figures.

- `proxy`: a TCP proxy that delays, withholds, cuts, resets, trickles and corrupts.
- `servers`: Redis processes that are killed, stopped and started again.
- `load`: 200 callers whose every answer is checked.
- `stage`: all of that around the caches of one scenario.
- `scenarios`: what is broken, and how it is mended.
- `measure`: one scenario, from the calm before to the hit rate after.
- `identity`, `leaks`: a thousand clients; a million requests.
"""
