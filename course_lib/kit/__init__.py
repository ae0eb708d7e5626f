"""What every notebook needs and no algorithm: the course it holds, claims, results, figures."""
