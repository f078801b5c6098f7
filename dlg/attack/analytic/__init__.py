"""Attacks that read labels, features and inputs off the gradients without optimising the input."""
