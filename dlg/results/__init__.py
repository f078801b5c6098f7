"""Results: pictures, figures, scores, and their folder. Nothing here imports the participant's or the attack's side."""
