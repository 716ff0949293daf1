"""Training: the loop, its step, what is saved, which settings suit the data."""
