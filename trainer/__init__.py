"""The training backend. It knows no node, no server and no canvas."""
