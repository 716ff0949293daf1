"""Studies of many runs: sweeps, comparisons, the demo."""
