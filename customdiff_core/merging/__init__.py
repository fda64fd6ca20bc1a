"""Several fine-tuned concepts into one model, in closed form and without training (arXiv:2212.04488, section 3.2)."""
