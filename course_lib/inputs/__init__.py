"""What goes in: profiles, models, rows of text, downloads."""
