"""A whole run in its folder: train, test, resume, predict, change its classes, merge."""
