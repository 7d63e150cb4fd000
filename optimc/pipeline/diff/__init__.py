"""`optimc diff`: two models, value by value."""
