"""How the pocket models came about, and what their cards say."""
