"""Looks inside a recipe or a model; changes nothing."""
