"""Files and processes; no models."""
