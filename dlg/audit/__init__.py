"""The audit: a grid of attacks that shows which defence stops the leak and how far it changes the gradient."""
