"""Training: from a recipe's command line to a run folder."""
