"""Experiments as data, and what it takes to make them again, carry them out and judge what came of them."""
