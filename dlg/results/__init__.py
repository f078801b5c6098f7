"""Results: pictures, figures, scores, and the folder they are written to. Nothing here imports either side."""
