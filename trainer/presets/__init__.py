"""Presets as YAML files: named for what people want."""
