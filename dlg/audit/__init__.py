"""The audit: a grid of attacks that shows which defence stops the leak and how far it changes the gradient."""

# What the lines on standard error begin with.
PROGRAM = "python -m dlg.audit"
