"""Hand-over of a built cell to serving: a folder, or a model repository, with proof beside it."""
