"""Captions in, 200 regularization images out."""
