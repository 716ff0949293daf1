"""What leaves liftplus: graphs, the model hub, peft's LoRA files."""
