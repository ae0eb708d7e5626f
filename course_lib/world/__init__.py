"""The pocket world: a small synthetic world in which everything that real data hides is known."""
