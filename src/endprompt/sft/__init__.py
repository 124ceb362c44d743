"""Supervised fine-tuning of an extended model, its window kept: TRL trains, rows are ours."""
