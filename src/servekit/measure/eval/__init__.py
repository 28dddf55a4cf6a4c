"""`servekit eval`: MMMU-Pro by the real lmms-eval, under `measure`, scored by the benchmark's rule."""
