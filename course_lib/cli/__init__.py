"""The `course` command: one file for each group of commands."""
