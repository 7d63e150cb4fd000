"""Ready recipes, with the data that they need."""
