"""What is trained on: one Protocol, two implementations."""
