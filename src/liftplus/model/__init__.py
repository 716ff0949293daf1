"""The classifier: backbone, tuners and head put together, the head's first rows, and the losses."""
