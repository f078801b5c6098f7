"""The attacker's side: it is given a `SharedStep` and nothing else. Nothing here imports the participant's side."""
