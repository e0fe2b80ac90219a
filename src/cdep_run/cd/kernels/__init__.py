"""Code that exists for speed alone: each function has a slow twin in the tests or the rules."""
