"""GLUE: fine-tuning a pretrained encoder on each task, and scoring it."""
