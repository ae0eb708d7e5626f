"""What the notebooks run: recipes of trained models, what is measured of them, figures."""
