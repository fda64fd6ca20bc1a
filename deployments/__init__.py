"""How the pipeline is run: the local stack (`python -m deployments.local`) and examples for containers and clusters."""
