"""Custom Diffusion as a library: retrieve, augment, finetune, evaluate, report. Needs no server."""
