"""The canvas: a node is a schema and ten lines of execute."""
