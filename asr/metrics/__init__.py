"""How good and how fast: error rates, latency."""
