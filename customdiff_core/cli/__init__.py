"""`customdiff`: the stages from a shell, with or without a server; the same functions and the same store as the flows."""
