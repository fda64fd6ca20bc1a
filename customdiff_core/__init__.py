"""Custom Diffusion as a library: retrieve, augment, finetune, evaluate, report. Works without Prefect and without a server."""
