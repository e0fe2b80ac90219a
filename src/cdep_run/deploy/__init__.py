"""A finished run put to use: predictions for new examples, other file formats, a model card."""
