"""A run on disk: its folder, its LoRA files."""
