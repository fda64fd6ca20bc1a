"""How well the concept was learnt, and at what price."""
