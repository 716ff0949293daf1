"""Evaluation: predictions, kept features, priors, accuracies and what chance makes of them."""
