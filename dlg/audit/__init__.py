"""The audit: which defence stops the leak, and at what price. A grid of attacks, and one page that reports it."""
