"""What runs when. Every stage is a flow of its own; `customize` is all of them in a row."""
