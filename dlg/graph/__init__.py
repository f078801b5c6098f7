"""PaddlePaddle's graphs: how they are read, rewritten, differentiated and copied. No module here knows of an attack."""
