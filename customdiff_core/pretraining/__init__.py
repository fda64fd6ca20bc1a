"""Make the embedded base model from nothing: scenes, tokenizer, CLIP, VAE, UNet, judge and image encoder."""
