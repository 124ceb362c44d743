"""The main job: one model, one target, every arm."""
