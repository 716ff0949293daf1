"""Runs: a folder trained, tested, resumed, used again or given other classes."""
