"""Fine-tune vision foundation models on long-tailed image data: LIFT and LIFT+."""
