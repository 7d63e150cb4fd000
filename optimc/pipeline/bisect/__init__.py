"""`optimc bisect`: the pass to blame, and the smallest set of its rewrites."""
