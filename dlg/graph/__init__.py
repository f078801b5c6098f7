"""PaddlePaddle's graphs: reading, rewriting and copying them. Nothing here knows of an attack."""
