"""A finished run for others: exported graphs, the model hub, peft's LoRA files."""
