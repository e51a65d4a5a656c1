"""Layers that compute as torch's and PEFT's do, and keep less for backward. They know no model, no host and no configuration."""
