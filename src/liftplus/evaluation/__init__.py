"""Evaluation: predictions, feature cache, priors, accuracies, and whether differences are more than noise."""
