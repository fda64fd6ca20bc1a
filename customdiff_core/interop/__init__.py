"""Other programs' files, read and written.

| format | file | holds |
|---|---|---|
| customdiff | `*.safetensors` | this project's delta, with its lineage |
| diffusers | folder: `pytorch_custom_diffusion_weights.*`, `<token>.*` | cross-attention, tokens |
| authors | `delta.bin` | cross-attention under diffusers' names, tokens |
| compvis | `delta*.ckpt` | cross-attention under CompVis' names, tokens without their names |
| embedding | `<token>.safetensors`, `.bin`, `.pt`, or a folder of them | tokens alone (textual inversion) |
| webui | `*.safetensors` or `.ckpt`, and `embeddings/<token>.pt` | a whole model |
| kohya, peft | `*.safetensors` | thin factors (LoRA); written only |

A pickle is opened with `weights_only` alone: one that holds anything but tensors and plain values is refused unread.
"""
