"""Judging a pretrained encoder by what it learns from tasks: fine-tuning, scoring, predictions."""
