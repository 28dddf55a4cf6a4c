"""What a request body may ask for, one module for each part of it; standard library only."""
