"""The participant's side: it owns the batch, trains, and decides what is shared. Nothing here knows of an attack."""
