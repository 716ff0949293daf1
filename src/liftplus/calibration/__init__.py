"""Calibration: promises about predictions, and whether they are kept: temperature, sets of classes, unknown ones."""
