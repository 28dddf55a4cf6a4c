"""The running engine, watched from outside."""
