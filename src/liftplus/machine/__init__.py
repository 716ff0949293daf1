"""The machine: device and precision, several processes, repeatable kernels, paths."""
