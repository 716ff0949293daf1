"""Experiments as data: what they need, making their runs, and judging the results."""
