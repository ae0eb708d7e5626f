"""Exercises that check themselves, a table for each notebook."""
