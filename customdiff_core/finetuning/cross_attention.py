"""Endings of diffusers' parameter names: which part of a UNet somebody means. Imports no tensor library."""

KEYS_AND_VALUES = ("attn2.to_k.weight", "attn2.to_v.weight")
QUERIES_AND_OUTPUTS = ("attn2.to_q.weight", "attn2.to_out.0.weight", "attn2.to_out.0.bias")
CROSS_ATTENTION = (*KEYS_AND_VALUES, *QUERIES_AND_OUTPUTS)
EVERYTHING = ("",)  # every name ends so
